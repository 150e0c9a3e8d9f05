//! The text of a narinfo. It is also parsed as keys and as `nix-cache-info`.

use lazystore::closure::narinfo::{CACHE_NIXOS_ORG, CacheInfo, Narinfo, PublicKey};

const STORE: &[u8] = b"/nix/store";

/// The requested base name, unless the text contains a possible one.
const NAME: &[u8] = b"scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d";

/// Must not panic. An accepted narinfo has only values that a signature can cover. An error is one sentence.
pub fn run(data: &[u8]) {
    let one_line = |error: String| assert_eq!(error.lines().count(), 1, "{error}");
    match Narinfo::parse(data, asked_for(data), STORE) {
        Ok(narinfo) => check(&narinfo, asked_for(data)),
        Err(error) => one_line(error.to_string()),
    }
    if let Err(error) = CacheInfo::parse(data) {
        one_line(error.to_string());
    }
    if let Err(error) = PublicKey::parse_list(&String::from_utf8_lossy(data)) {
        one_line(error.to_string());
    }
}

/// The text after the store directory on the first line that contains it.
fn asked_for(data: &[u8]) -> &[u8] {
    let mut lines = data.split(|byte| *byte == b'\n');
    let name = lines.find_map(|line| line.strip_prefix(b"StorePath: /nix/store/"));
    name.unwrap_or(NAME)
}

fn check(narinfo: &Narinfo, name: &[u8]) {
    assert_eq!(&*narinfo.name, name);
    assert_ne!(narinfo.nar_size, 0);
    assert!(narinfo.url.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(narinfo.references.is_sorted_by(|a, b| a < b));
    // The signed text can be parsed in only one way.
    let text = String::from_utf8(narinfo.fingerprint(STORE)).unwrap();
    let parts: Vec<&str> = text.split(';').collect();
    let [version, path, hash, size, references] = parts[..] else {
        panic!("{text}");
    };
    assert_eq!((version, size), ("1", &*narinfo.nar_size.to_string()));
    assert_eq!(path.as_bytes(), [STORE, b"/", name].concat());
    let references: Vec<&str> = references
        .split(',')
        .filter(|path| !path.is_empty())
        .collect();
    assert_eq!(references.len(), narinfo.references.len());
    for (path, name) in references.iter().zip(&narinfo.references) {
        assert_eq!(path.as_bytes(), [STORE, b"/", name].concat());
    }
    let again = format!(
        "StorePath: {path}\nURL: {}\nNarHash: {hash}\nNarSize: {size}\nReferences: {}\n",
        narinfo.url,
        references
            .iter()
            .map(|path| &path[STORE.len() + 1..])
            .collect::<Vec<_>>()
            .join(" "),
    );
    let again = Narinfo::parse(again.as_bytes(), name, STORE).unwrap();
    assert_eq!(again.fingerprint(STORE), narinfo.fingerprint(STORE));
    let keys = PublicKey::parse_list(CACHE_NIXOS_ORG).unwrap();
    if let Err(error) = narinfo.verify(STORE, &keys) {
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
}
