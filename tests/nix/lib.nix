# As much of nixpkgs' lib and module system as the modules in nix/ use, for machines without nixpkgs: options declared in
# several modules, mkIf, mkMerge, priorities, a few types. Whatever else they used, or an option that nobody declares,
# is an evaluation error.
let
  inherit (builtins)
    all attrNames concatLists concatMap concatStringsSep elem elemAt filter foldl' head isAttrs isBool isFunction isInt
    isList isPath isString length listToAttrs map replaceStrings sort stringLength substring;

  # --- definitions: { value, priority, order, active }; `active` is only asked for where an option's value is ---

  kind = value: if isAttrs value then value._type or "" else "";

  expand =
    definition:
    let
      inherit (definition) value;
    in
    if kind value == "merge" then
      concatMap (content: expand (definition // { value = content; })) value.contents
    else if kind value == "if" then
      expand (definition // { value = value.content; active = definition.active && value.condition; })
    else if kind value == "override" then
      expand (definition // { value = value.content; inherit (value) priority; })
    else if kind value == "order" then
      expand (definition // { value = value.content; inherit (value) order; })
    else
      [ definition ];

  define = value: expand { inherit value; priority = 100; order = 1000; active = true; };

  # The definitions of an attribute of what `definitions` define.
  below =
    name: definitions:
    concatMap (d: if d.value ? ${name} then expand (d // { value = d.value.${name}; }) else [ ]) definitions;

  winners =
    definitions:
    let
      active = filter (d: d.active) definitions;
      best = foldl' (least: d: if d.priority < least then d.priority else least) 9999 active;
    in
    filter (d: d.priority == best) active;

  names = sets: attrNames (foldl' (a: b: a // b) { } sets);
  values = map (d: d.value);
  inOrder = definitions: values (sort (a: b: a.order < b.order) definitions);
  path = concatStringsSep ".";

  # --- options ---

  isOption = node: kind node == "option";

  # The tree of declarations; who declares an option again adds to it.
  declare =
    loc: trees:
    if all isOption trees then
      foldl' (
        option: more:
        assert concatLists (map (key: if option ? ${key} && more ? ${key} then [ key ] else [ ]) [ "default" "apply" ]) == [ ];
        option // more
      ) { } trees
    else
      mapNames (name: declare (loc ++ [ name ]) (concatMap (t: if t ? ${name} then [ t.${name} ] else [ ]) trees)) (
        names trees
      );

  mapNames = f: list: listToAttrs (map (name: { inherit name; value = f name; }) list);

  evaluate =
    loc: declared: definitions:
    if isOption declared then
      (declared.apply or (value: value)) (evaluateOption loc declared definitions)
    else
      let
        unknown = filter (name: !(declared ? ${name})) (names (values definitions));
      in
      if unknown != [ ] then
        throw "The option `${path (loc ++ [ (head unknown) ])}' does not exist."
      else
        mapNames (name: evaluate (loc ++ [ name ]) declared.${name} (below name definitions)) (attrNames declared);

  evaluateOption =
    loc: option: definitions:
    let
      default = if option ? default then [ { value = option.default; priority = 1500; order = 1000; active = true; } ] else [ ];
      defined = winners (definitions ++ default);
    in
    if defined == [ ] then throw "The option `${path loc}' is used but not defined." else option.type.merge loc defined;

  # --- types: how definitions become a value ---

  single = what: check: {
    merge =
      loc: definitions:
      let
        value = head (values definitions);
      in
      if !all (other: other == value) (values definitions) then
        throw "The option `${path loc}' has conflicting definitions."
      else if !check value then
        throw "A definition for option `${path loc}' is not of type `${what}'."
      else
        value;
  };

  isDerivation = value: value.type or "" == "derivation";

  types = {
    bool = single "boolean" isBool;
    str = single "string" isString;
    ints.positive = single "positive integer" (value: isInt value && value > 0);
    ints.unsigned = single "unsigned integer" (value: isInt value && value >= 0);
    package = single "package" isDerivation;
    path = single "absolute path" (value: isPath value || isDerivation value || (isString value && substring 0 1 value == "/"));
    enum = allowed: single "one of ${concatStringsSep ", " allowed}" (value: elem value allowed);
    nullOr = type: {
      merge = loc: definitions: if values definitions == [ null ] then null else type.merge loc definitions;
    };
    raw.merge = loc: definitions: if length definitions == 1 then (head definitions).value else throw "The option `${path loc}' is defined twice.";
    lines.merge = _loc: definitions: concatStringsSep "\n" (inOrder definitions);
    listOf = type: {
      merge = loc: definitions: map (value: type.merge loc (define value)) (concatLists (inOrder definitions));
    };
    attrsOf = type: {
      merge =
        loc: definitions:
        let
          defined = name: winners (below name definitions);
        in
        mapNames (name: type.merge (loc ++ [ name ]) (defined name)) (
          filter (name: defined name != [ ]) (names (values definitions))
        );
    };
    submodule = module: { merge = loc: evaluate loc (declare loc [ module.options ]); };
  };

  # --- lib ---

  mkOverride = priority: content: { _type = "override"; inherit priority content; };
  mkOrder = order: content: { _type = "order"; inherit order content; };
  escapeShellArg =
    value:
    let
      text = toString value;
      harmless = builtins.match "[[:alnum:],._+:@%/-]+" text != null;
    in
    if harmless then text else "'${replaceStrings [ "'" ] [ "'\\''" ] text}'";
in
{
  inherit types escapeShellArg mkOverride;
  inherit (builtins) any concatStringsSep elem isFunction replaceStrings;

  mkOption = option: option // { _type = "option"; };
  mkIf = condition: content: { _type = "if"; inherit condition content; };
  mkMerge = contents: { _type = "merge"; inherit contents; };
  mkForce = mkOverride 50;
  mkDefault = mkOverride 1000;
  mkVMOverride = mkOverride 10;
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;

  optional = condition: value: if condition then [ value ] else [ ];
  optionals = condition: list: if condition then list else [ ];
  optionalString = condition: text: if condition then text else "";
  optionalAttrs = condition: set: if condition then set else { };
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  removePrefix =
    prefix: text:
    let
      begins = substring 0 (stringLength prefix) text == prefix;
    in
    if begins then substring (stringLength prefix) (-1) text else text;
  removeSuffix =
    suffix: text:
    let
      rest = stringLength text - stringLength suffix;
      ends = rest >= 0 && substring rest (-1) text == suffix;
    in
    if ends then substring 0 rest text else text;
  mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
  nameValuePair = name: value: { inherit name value; };
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  escapeShellArgs = list: concatStringsSep " " (map escapeShellArg list);
  genAttrs = list: f: mapNames f list;
  literalExpression = text: { _type = "literalExpression"; inherit text; };

  evalModules =
    { modules, specialArgs }:
    let
      load = module: if isFunction module then module arguments else if isAttrs module then module else load (import module);
      arguments = specialArgs // { inherit config options; };
      loaded = map load modules;
      options = declare [ ] (map (module: module.options or { }) loaded);
      config = evaluate [ ] options (
        concatMap (module: define (module.config or (removeAttrs module [ "options" ]))) loaded
      );
    in
    {
      inherit config options;
    };
}
