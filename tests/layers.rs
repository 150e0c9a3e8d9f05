//! Data flows one way: a module uses only modules to its left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::common::memory_dir;

/// The order within one folder of `src`.
struct Order {
    /// The parent module. Empty for the crate.
    parent: &'static str,
    /// From left to right.
    chain: &'static [&'static str],
    /// Modules that use nothing of the chain, and the modules that may use them.
    beside: &'static [(&'static str, &'static [&'static str])],
}

/// Must be edited when a module is added, removed or moved.
const ORDERS: [Order; 2] = [
    Order {
        parent: "",
        chain: &[
            "parallel", "tree", "closure", "source", "cache", "erofs", "image", "verify", "device",
            "server", "cli",
        ],
        beside: &[
            ("process", &["cache", "image", "device", "server", "cli"]),
            ("sandbox", &["cache", "device", "server", "cli"]),
        ],
    },
    Order {
        parent: "erofs",
        chain: &["format", "dirent", "layout", "encode", "volume"],
        beside: &[],
    },
];

/// Names of modules from the crate's root on.
type ModulePath = Vec<String>;

/// A source file, and the paths in this crate that it names.
struct Source {
    file: PathBuf,
    module: ModulePath,
    uses: BTreeSet<ModulePath>,
}

fn path_of(text: &str) -> ModulePath {
    let names = text.split("::").filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// All Rust files below `dir`.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| match path.is_dir() {
        true => rust_files(&path),
        false => vec![path],
    });
    files
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The sources below `root`, except for tests, which may use all modules.
fn sources(root: &Path) -> Vec<Source> {
    let is_test = |module: &ModulePath| module.iter().any(|n| n == "tests" || n == "testing");
    let files = rust_files(root).into_iter();
    let named = files.map(|file| (module_of(root, &file), file));
    let named = named.filter(|(module, _)| !module.is_empty() && !is_test(module));
    named
        .map(|(module, file)| Source::read(file, module))
        .collect()
}

/// The module of a file. Empty for the crate's root.
fn module_of(root: &Path, file: &Path) -> ModulePath {
    let inside = file.strip_prefix(root).unwrap().with_extension("");
    let names = inside.iter().map(|name| name.to_str().unwrap().to_owned());
    let mut module: ModulePath = names.collect();
    let roots = ["lib", "main"];
    if module.last().is_some_and(|n| n == "mod") || roots.contains(&&*module[0]) {
        module.pop();
    }
    module
}

impl Source {
    fn read(file: PathBuf, module: ModulePath) -> Self {
        let text = fs::read_to_string(&file).unwrap();
        let stream: TokenStream = text.parse().unwrap();
        let mut uses = BTreeSet::new();
        collect(stream, &module, &mut uses);
        Self { file, module, uses }
    }
}

fn is(token: Option<&TokenTree>, text: &str) -> bool {
    token.is_some_and(|token| token.to_string() == text)
}

fn braces(token: Option<&TokenTree>) -> Option<TokenStream> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            Some(group.stream())
        }
        _ => None,
    }
}

/// Adds all paths in `stream`, a part of `module`, that begin with `crate`, `self` or `super`.
fn collect(stream: TokenStream, module: &ModulePath, uses: &mut BTreeSet<ModulePath>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let continues = at > 0 && is(tokens.get(at - 1), ":");
        let inline_module = at > 1 && is(tokens.get(at - 2), "mod");
        match token {
            TokenTree::Group(group) if inline_module => {
                let is_test = at > 2 && is(tokens.get(at - 3), "[cfg (test)]");
                if !is_test {
                    let inner = [module.clone(), vec![tokens[at - 1].to_string()]].concat();
                    collect(group.stream(), &inner, uses);
                }
            }
            TokenTree::Group(group) => collect(group.stream(), module, uses),
            TokenTree::Ident(name) if !continues => match &*name.to_string() {
                "crate" => follow(&tokens[at + 1..], Vec::new(), uses),
                "self" => follow(&tokens[at + 1..], module.clone(), uses),
                "super" => follow(&tokens[at + 1..], parent(module), uses),
                _ => {}
            },
            _ => {}
        }
    }
}

fn parent(module: &ModulePath) -> ModulePath {
    module[..module.len().saturating_sub(1)].to_vec()
}

/// Follows the rest of a path whose beginning is `path`, through groups of `use`.
fn follow(tokens: &[TokenTree], mut path: ModulePath, uses: &mut BTreeSet<ModulePath>) {
    let mut rest = tokens;
    while is(rest.first(), ":") && is(rest.get(1), ":") {
        if let Some(group) = braces(rest.get(2)) {
            let items: Vec<TokenTree> = group.into_iter().collect();
            for item in items.split(|token| is(Some(token), ",")) {
                follow_item(item, &path, uses);
            }
            return;
        }
        match rest.get(2).map(ToString::to_string) {
            Some(name) if name == "super" => path = parent(&path),
            Some(name) => path.push(name),
            None => break,
        }
        rest = &rest[3..];
    }
    uses.insert(path);
}

/// Follows one item of a group.
fn follow_item(item: &[TokenTree], path: &ModulePath, uses: &mut BTreeSet<ModulePath>) {
    let Some(first) = item.first().map(ToString::to_string) else {
        return;
    };
    let path = match &*first {
        "self" => path.clone(),
        "super" => parent(path),
        _ => [path.clone(), vec![first]].concat(),
    };
    follow(&item[1..], path, uses);
}

impl Order {
    /// The module of this folder that a path leads to.
    fn part<'p>(&self, path: &'p ModulePath) -> Option<&'p str> {
        let inside = path.strip_prefix(&path_of(self.parent)[..])?;
        inside.first().map(String::as_str)
    }

    fn allows(&self, from: &str, to: &str) -> bool {
        let position = |name: &str| self.chain.iter().position(|part| *part == name);
        let beside = |name: &str| self.beside.iter().find(|(part, _)| *part == name);
        if from == to {
            return true;
        }
        if let Some((_, users)) = beside(to) {
            return users.contains(&from);
        }
        match (position(from), position(to)) {
            (Some(from), Some(to)) => to < from,
            // A neighbour uses nothing of the chain. Other names are not modules.
            (None, Some(_)) => false,
            (_, None) => to != "*",
        }
    }

    fn violations(&self, sources: &[Source]) -> Vec<String> {
        let mut wrong = BTreeSet::new();
        for source in sources {
            let Some(from) = self.part(&source.module) else {
                continue;
            };
            let to = source.uses.iter().filter_map(|path| self.part(path));
            let forbidden = to.filter(|to| !self.allows(from, to));
            wrong.extend(forbidden.map(|to| format!("{} uses {to}", source.file.display())));
        }
        wrong.into_iter().collect()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let beside = self.beside.iter().map(|(part, _)| *part);
        self.chain.iter().copied().chain(beside)
    }
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn no_module_uses_one_to_its_right() {
    let sources = sources(&src());
    for order in ORDERS {
        assert_eq!(order.violations(&sources), Vec::<String>::new());
    }
}

#[test]
fn every_module_is_listed() {
    for order in ORDERS {
        let parts: BTreeSet<String> = sources(&src())
            .iter()
            .filter_map(|source| order.part(&source.module).map(str::to_owned))
            .collect();
        assert!(parts.len() > 2);
        for part in parts {
            assert!(
                order.names().any(|name| name == part),
                "{part} has no place"
            );
        }
    }
}

/// The modules of a folder must have some order in which they use each other.
fn circles(sources: &[Source]) -> Vec<String> {
    let mut uses: BTreeMap<(ModulePath, String), BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        for path in &source.uses {
            let shared = source
                .module
                .iter()
                .zip(path)
                .take_while(|(a, b)| a == b)
                .count();
            if let (Some(from), Some(to)) = (source.module.get(shared), path.get(shared)) {
                let folder = source.module[..shared].to_vec();
                uses.entry((folder, from.clone()))
                    .or_default()
                    .insert(to.clone());
            }
        }
    }
    // Removes modules that use no remaining module, or that no remaining module uses, until only cycles are left.
    loop {
        let users: BTreeSet<_> = uses.keys().cloned().collect();
        let used: BTreeSet<_> = uses
            .iter()
            .flat_map(|((folder, _), to)| to.iter().map(|to| (folder.clone(), to.clone())))
            .collect();
        uses.retain(|user, _| used.contains(user));
        for ((folder, _), to) in &mut uses {
            to.retain(|to| users.contains(&(folder.clone(), to.clone())));
        }
        uses.retain(|_, to| !to.is_empty());
        if uses.len() == users.len() {
            break;
        }
    }
    let shown = |((folder, from), to): (&(ModulePath, String), &BTreeSet<String>)| {
        format!("{}::{from} uses {to:?}", folder.join("::"))
    };
    uses.iter().map(shown).collect()
}

#[test]
fn modules_have_no_import_cycle() {
    assert_eq!(circles(&sources(&src())), Vec::<String>::new());
}

/// Every way to write a path to a module of this crate.
#[test]
fn every_form_of_a_forbidden_import_is_found() {
    let texts = [
        "use crate::image::Image;",
        "use crate::{erofs, image::Image};",
        "use crate::{\n    erofs::{format, layout::{self, plan}},\n    image,\n};",
        "use super::image;",
        "use super::{closure, image::{Image, ReadError}};",
        "pub(crate) use crate::image as other;",
        "fn f() -> Vec<crate::image::Image> { Vec::new() }",
        "fn f() { g!(a, crate::image::LEN) }",
        "mod inner { use super::super::image::Image; }",
        "mod inner { use crate::{self, image}; }",
        "use self::super::image::Image;",
        "use crate::*;",
    ];
    let harmless = [
        "// use crate::image::Image;",
        "/// See [`crate::image`].\nconst A: &str = \"crate::image::Image\";",
        "use crate::tree::Name; use other::image;",
        "#[cfg(test)] mod tests { use crate::image::Image; }",
        "mod image; use self::image::Image;",
        "pub(crate) fn image() -> char { '\"' }",
    ];
    let found = |text: &str| {
        let root = memory_dir();
        fs::create_dir(root.path().join("closure")).unwrap();
        fs::write(root.path().join("closure/mod.rs"), text).unwrap();
        ORDERS[0].violations(&sources(root.path()))
    };
    for text in texts {
        let uses = |line: &String| line.ends_with("uses image") || line.ends_with("uses *");
        assert!(found(text).iter().any(uses), "{text}");
    }
    for text in harmless {
        assert_eq!(found(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn an_import_cycle_is_found() {
    let root = memory_dir();
    let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
    fs::create_dir(root.path().join("image")).unwrap();
    write("image/mod.rs", "mod a; mod b; mod c; use a::A;");
    write("image/a.rs", "use super::b::B;");
    write("image/b.rs", "use crate::image::c;");
    write("image/c.rs", "");
    assert_eq!(circles(&sources(root.path())), Vec::<String>::new());
    write("image/c.rs", "use super::a;");
    let found = ["a uses {\"b\"}", "b uses {\"c\"}", "c uses {\"a\"}"];
    let found = found.map(|arrow| format!("image::{arrow}"));
    assert_eq!(circles(&sources(root.path())), found);
}
