use super::*;

const STORE: &[u8] = b"/nix/store";

/// A path of cache.nixos.org, with its real signature.
const SIGNED: &str = "\
StorePath: /nix/store/8raygmhj0mhmq8jxb6bgr4ggcbyyrmf8-gnutls-3.8.6.tar.xz.drv
URL: nar/102hxakkbis6klnz008zr3a0qhll795x9bffrcnxzhvff9sgngw7.nar.xz
Compression: xz
FileHash: sha256:102hxakkbis6klnz008zr3a0qhll795x9bffrcnxzhvff9sgngw7
FileSize: 1328
NarHash: sha256:1j71h0jylc9lf1syg9srma2fsv64gsk3954xxf25bnlxhxdg29a8
NarSize: 3048
References: 6iah9pffqjj0lwgf0b1h32a6536jnw18-mirrors-list.drv 85lazfv5243dxqph70ngxq2scm241qc6-stdenv-linux.drv \
g0gn91m56b267ncx05w93kihyqia39cm-builder.sh v2whqah0ghyg7wpfy133x95raxfz282v-curl-8.11.0.drv \
vjznlmanjkps53l7hw2krvpzwqcd5m3d-bash-5.2p37.drv
Sig: cache.nixos.org-1:G2Cxc5XkCcJDIub6IWbWMeayRmf3ymdlJ62OmSEPZfgGPAcVI8dslouzLOZ34JMxKiUVjNTO4E/CK0B0rLGMDQ==
CA: text:sha256:18cyz621xqngdfc8kmxrj3v5rrxyzdls5ahqb6qaq5ggm7q9gjdq
";
const SIGNED_NAME: &[u8] = b"8raygmhj0mhmq8jxb6bgr4ggcbyyrmf8-gnutls-3.8.6.tar.xz.drv";

/// Written by `nix copy` of Nix 2.8 for a directory added with `nix-store --add`.
const ADDED: &str = "\
StorePath: /nix/store/scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d
URL: nar/083iwflwf184d6zn55qmpv4v6gni75vxswhjz0dkhmq30047khsy.nar.br
Compression: br
FileHash: sha256:083iwflwf184d6zn55qmpv4v6gni75vxswhjz0dkhmq30047khsy
FileSize: 159
NarHash: sha256:0c8hjz53xq69bd41a2vbm81mi0j4mkk2g8k8cb45xdk73fkwkwgv
NarSize: 1064
References: 
CA: fixed:r:sha256:0c8hjz53xq69bd41a2vbm81mi0j4mkk2g8k8cb45xdk73fkwkwgv
";
const ADDED_NAME: &[u8] = b"scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d";

/// A narinfo with only the required fields.
const SHORT: &str = "\
StorePath: /nix/store/scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d
URL: nar/x
NarHash: sha256:0c8hjz53xq69bd41a2vbm81mi0j4mkk2g8k8cb45xdk73fkwkwgv
NarSize: 1064
";

fn signed() -> Narinfo {
    Narinfo::parse(SIGNED.as_bytes(), SIGNED_NAME, STORE).unwrap()
}

fn keys() -> Vec<PublicKey> {
    PublicKey::parse_list(CACHE_NIXOS_ORG).unwrap()
}

fn added(text: &str) -> Result<Narinfo, NarinfoError> {
    Narinfo::parse(text.as_bytes(), ADDED_NAME, STORE)
}

fn refused(text: &str) -> String {
    added(text).unwrap_err().to_string()
}

#[test]
fn every_field_is_read() {
    let narinfo = signed();
    assert_eq!(&*narinfo.name, SIGNED_NAME);
    assert_eq!(
        narinfo.url,
        "nar/102hxakkbis6klnz008zr3a0qhll795x9bffrcnxzhvff9sgngw7.nar.xz"
    );
    assert_eq!(narinfo.compression, Compression::Xz);
    assert_eq!((narinfo.file_size, narinfo.nar_size), (Some(1328), 3048));
    assert_eq!(narinfo.references.len(), 5);
    assert_eq!(
        &*narinfo.references[2],
        b"g0gn91m56b267ncx05w93kihyqia39cm-builder.sh"
    );
    let hash = hash::decode(b"1j71h0jylc9lf1syg9srma2fsv64gsk3954xxf25bnlxhxdg29a8");
    assert_eq!(Some(narinfo.nar_hash), hash);
    assert_ne!(narinfo.file_hash, hash);
}

#[test]
fn absent_fields_have_the_defaults_of_nix() {
    let narinfo = added(SHORT).unwrap();
    assert_eq!(narinfo.compression, Compression::Bzip2);
    assert_eq!((narinfo.file_hash, narinfo.file_size), (None, None));
    assert!(narinfo.references.is_empty());
    let with = |line: &str| added(&format!("{SHORT}{line}\n"));
    // Unknown fields, and empty values.
    for line in [
        "New: x",
        "Deriver:",
        "References:",
        "FileSize: ",
        "Compression: bzip2",
        "Sig: x",
        "New: y:z",
    ] {
        assert_eq!(with(line).unwrap(), narinfo, "{line}");
    }
    assert_eq!(with("CA: text:sha256:x").unwrap(), narinfo);
}

#[test]
fn hashes_in_all_notations() {
    let hash = hash::decode(b"0c8hjz53xq69bd41a2vbm81mi0j4mkk2g8k8cb45xdk73fkwkwgv").unwrap();
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let nix32 = "sha256:0c8hjz53xq69bd41a2vbm81mi0j4mkk2g8k8cb45xdk73fkwkwgv";
    let narinfo = added(&SHORT.replace(nix32, &format!("sha256:{hex}"))).unwrap();
    assert_eq!(narinfo.nar_hash, hash);
    let sri = "sha256-+/HJpxtntl7IYmiiJ+asRIJYA6prCxVIW8ngPsqXEDE=";
    assert_eq!(added(&SHORT.replace(nix32, sri)).unwrap().nar_hash, hash);
    assert_eq!(
        refused(&SHORT.replace("0c8h", "ec8h")),
        "NarHash \"sha256:ec8hjz53xq69bd41a2vbm81mi0j4mkk2g8k8cb45xdk73fkwkwgv\" of the narinfo is not a sha256"
    );
}

#[test]
fn the_signature_of_cache_nixos_org_is_valid() {
    let key = "cache.nixos.org-1".to_owned();
    assert_eq!(signed().verify(STORE, &keys()), Ok(Trust::Signed { key }));
    let fingerprint = String::from_utf8(signed().fingerprint(STORE)).unwrap();
    let begin = "1;/nix/store/8raygmhj0mhmq8jxb6bgr4ggcbyyrmf8-gnutls-3.8.6.tar.xz.drv;sha256:1j71h0jylc9lf1syg9srma2fsv64gsk3954xxf25bnlxhxdg29a8;3048;/nix/store/6iah9pffqjj0lwgf0b1h32a6536jnw18-mirrors-list.drv,/nix/store/85laz";
    assert!(fingerprint.starts_with(begin), "{fingerprint}");
    assert!(fingerprint.ends_with(",/nix/store/vjznlmanjkps53l7hw2krvpzwqcd5m3d-bash-5.2p37.drv"));
}

#[test]
fn signed_references_are_sorted_and_unique() {
    let (first, last) = (
        "6iah9pffqjj0lwgf0b1h32a6536jnw18-mirrors-list.drv",
        "bash-5.2p37.drv\n",
    );
    let moved = SIGNED
        .replace(&format!("{first} "), "")
        .replace(last, &format!("bash-5.2p37.drv {first} {first}\n"));
    let narinfo = Narinfo::parse(moved.as_bytes(), SIGNED_NAME, STORE).unwrap();
    assert!(narinfo.verify(STORE, &keys()).is_ok());
}

/// Changes each signed field, one at a time.
#[test]
fn a_change_of_a_signed_field_is_noticed() {
    let name = "8raygmhj0mhmq8jxb6bgr4ggcbyyrmf8-gnutls-3.8.6.tar.xz.drv";
    let other_name = name.replace("gnutls", "gnutlz");
    let changes = [
        ("NarSize: 3048", "NarSize: 3049"),
        ("NarHash: sha256:1j71", "NarHash: sha256:1j72"),
        (" g0gn91m56b267ncx05w93kihyqia39cm-builder.sh", ""),
        ("-builder.sh", "-builder.st"),
        (name, &*other_name),
        ("/nix/store", "/nix/stora"),
        ("Sig: cache.nixos.org-1:G2Cx", "Sig: cache.nixos.org-1:H2Cx"),
        ("Sig: cache.nixos.org-1:", "Sig: cache.nixos.org-2:"),
    ];
    for (from, to) in changes {
        let text = SIGNED.replacen(from, to, 1);
        assert_ne!(text, SIGNED);
        let name = if from == name {
            to.as_bytes()
        } else {
            SIGNED_NAME
        };
        let store: &[u8] = if from == "/nix/store" {
            b"/nix/stora"
        } else {
            STORE
        };
        let narinfo = Narinfo::parse(text.as_bytes(), name, store).unwrap();
        assert!(narinfo.verify(store, &keys()).is_err(), "{to}");
    }
}

#[test]
fn reasons_for_distrust() {
    let path = "/nix/store/8raygmhj0mhmq8jxb6bgr4ggcbyyrmf8-gnutls-3.8.6.tar.xz.drv";
    let other =
        PublicKey::parse_list("other-1:dWSd5g+klu9mVxPMmC9cmMSZ3SQP1w5eZmu1SxmtgXE=").unwrap();
    let message = |text: &str, keys: &[PublicKey]| {
        let narinfo = Narinfo::parse(text.as_bytes(), SIGNED_NAME, STORE).unwrap();
        narinfo.verify(STORE, keys).unwrap_err().to_string()
    };
    let unknown = format!("{path} is not signed by a trusted key, but by cache.nixos.org-1");
    assert_eq!(message(SIGNED, &other), unknown);
    assert_eq!(message(SIGNED, &[]), unknown);
    let forged = SIGNED.replace(":G2Cx", ":G3Cx");
    assert_eq!(
        message(&forged, &keys()),
        format!("the signature of {path} by cache.nixos.org-1 is wrong")
    );
    let unsigned = SIGNED.replace("Sig: ", "Gis: ");
    assert_eq!(message(&unsigned, &keys()), format!("{path} is not signed"));
    // Neither a key with another name nor another key with the same name makes a signature valid.
    let impostor =
        PublicKey::parse("cache.nixos.org-1:dWSd5g+klu9mVxPMmC9cmMSZ3SQP1w5eZmu1SxmtgXE=").unwrap();
    assert!(message(SIGNED, std::slice::from_ref(&impostor)).contains("is wrong"));
    assert!(
        signed()
            .verify(STORE, &[impostor, keys().remove(0)])
            .is_ok()
    );
}

#[test]
fn a_content_addressed_path_needs_no_signature() {
    let narinfo = added(ADDED).unwrap();
    assert_eq!(narinfo.verify(STORE, &[]), Ok(Trust::ContentAddressed));
    // The path does not match: other contents, another name, another store, a reference; or the hash is not the NAR's.
    let other_hash = ADDED.replace("0c8hjz53", "0c8hjz54");
    let other_nar = ADDED.replace("NarHash: sha256:0c8hjz53", "NarHash: sha256:0c8hjz54");
    let reference = ADDED.replace(
        "References: ",
        "References: 6iah9pffqjj0lwgf0b1h32a6536jnw18-x",
    );
    let itself = ADDED.replace(
        "References: ",
        "References: scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d",
    );
    let other_kind = ADDED.replace("fixed:r:sha256", "fixed:sha256");
    for text in [other_hash, other_nar, reference, itself, other_kind] {
        assert!(added(&text).unwrap().verify(STORE, &[]).is_err(), "{text}");
    }
    let renamed = ADDED.replace("qb-d\n", "qb-e\n");
    let narinfo = Narinfo::parse(
        renamed.as_bytes(),
        b"scvmhzvzzlk8bfnsd0hx38nah5riv9qb-e",
        STORE,
    );
    assert!(narinfo.unwrap().verify(STORE, &[]).is_err());
}

#[test]
fn the_narinfo_of_another_path_is_refused() {
    let message = |name: &[u8], store: &[u8]| {
        Narinfo::parse(SHORT.as_bytes(), name, store)
            .unwrap_err()
            .to_string()
    };
    let expected = "the narinfo is of /nix/store/scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d instead of /nix/store/acvmhzvzzlk8bfnsd0hx38nah5riv9qb-d";
    assert_eq!(
        message(b"acvmhzvzzlk8bfnsd0hx38nah5riv9qb-d", STORE),
        expected
    );
    assert!(message(b"scvmhzvzzlk8bfnsd0hx38nah5riv9qb-dd", STORE).contains("instead of"));
    let expected = "the narinfo's StorePath is not a store path: /nix/store/scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d is not directly inside the store directory /gnu/store";
    assert_eq!(message(ADDED_NAME, b"/gnu/store"), expected);
}

#[test]
fn malformed_narinfos_are_refused() {
    let cases = [
        ("", "the narinfo ends within a line (was it cut short?)"),
        ("\n", "line 1 of the narinfo has no colon: \"\""),
        (
            "404 Not Found\n",
            "line 1 of the narinfo has no colon: \"404 Not Found\"",
        ),
        ("A: b\n", "the narinfo lacks StorePath"),
        (
            SHORT.trim_end(),
            "the narinfo ends within a line (was it cut short?)",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), expected);
    }
    for field in ["StorePath", "URL", "NarHash", "NarSize"] {
        let without: String = SHORT
            .lines()
            .filter(|line| !line.starts_with(field))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(refused(&without), format!("the narinfo lacks {field}"));
    }
    for field in [
        "StorePath",
        "URL",
        "Compression",
        "FileHash",
        "FileSize",
        "NarHash",
        "NarSize",
        "References",
        "CA",
    ] {
        let line = ADDED.lines().find(|line| line.starts_with(field)).unwrap();
        assert_eq!(
            refused(&format!("{ADDED}{line}\n")),
            format!("the narinfo has {field} twice")
        );
    }
    let long = format!("{SHORT}X: {}\n", "x".repeat(NARINFO_MAX_BYTES));
    assert_eq!(refused(&long), "the narinfo has more than 1048576 bytes");
    let binary = [SHORT.as_bytes(), b"X: \xff\n"].concat();
    assert_eq!(
        Narinfo::parse(&binary, ADDED_NAME, STORE),
        Err(NarinfoError::NotText)
    );
}

#[test]
fn invalid_values_are_refused() {
    let with = |from: &str, to: &str| {
        let text = SHORT.replace(from, to);
        assert_ne!(text, SHORT);
        refused(&text)
    };
    assert_eq!(
        with("1064", "0"),
        "NarSize of the narinfo is 0, and no NAR is empty"
    );
    for number in ["", "-1", "+1", "1 ", "0x10", "18446744073709551616", "1\r"] {
        assert!(
            with("1064", number).ends_with("of the narinfo is not a number of 64 bits"),
            "{number}"
        );
    }
    for url in [
        "",
        "../x",
        "nar/../../x",
        "nar/..",
        "nar\\..\\x",
        "nar/a b",
        "nar/a\tb",
        "nar/ü",
        "nar/x\r",
        "http://x/../y",
    ] {
        assert!(
            with("nar/x", url).ends_with("of the narinfo is not usable"),
            "{url}"
        );
    }
    for path in [
        "/nix/store/../x",
        "/nix/store/d",
        "/nix/store/scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d/x",
        "scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d",
        "",
    ] {
        with("/nix/store/scvmhzvzzlk8bfnsd0hx38nah5riv9qb-d", path);
    }
    let text = format!("{SHORT}Compression: lzip\n");
    assert_eq!(
        refused(&text),
        "the NAR is compressed with \"lzip\"; known are none, xz, zstd, br, bzip2 and gzip"
    );
}

/// A name with a comma or a newline could be read as several names in the signed text.
#[test]
fn references_must_be_names_that_nix_accepts() {
    let hash = "6iah9pffqjj0lwgf0b1h32a6536jnw18";
    let with = |name: &str| added(&format!("{SHORT}References: {name}\n"));
    let long = format!("{hash}-{}", "x".repeat(211));
    for name in [&format!("{hash}-x"), &format!("{hash}-Aa0+-._?="), &long] {
        assert_eq!(&*with(name).unwrap().references[0], name.as_bytes());
    }
    let bad = [
        format!("{hash}-x,/nix/store/{hash}-y"),
        format!("{hash}-x,y"),
        format!("/nix/store/{hash}-x"),
        format!("{hash}-"),
        hash.to_owned(),
        format!("{hash}x-y"),
        hash.replace('6', "e") + "-x",
        hash.to_uppercase() + "-x",
        "..".to_owned(),
        format!("{hash}-ü"),
        format!("{hash}-x\ty"),
        format!("{long}x"),
    ];
    for name in bad {
        assert!(
            matches!(with(&name), Err(NarinfoError::Name { .. })),
            "{name}"
        );
    }
}

#[test]
fn keys_of_nix_conf() {
    let two = format!(" {CACHE_NIXOS_ORG}\n\ttest-1:dWSd5g+klu9mVxPMmC9cmMSZ3SQP1w5eZmu1SxmtgXE= ");
    let names: Vec<String> = PublicKey::parse_list(&two)
        .unwrap()
        .iter()
        .map(|key| key.name().to_owned())
        .collect();
    assert_eq!(names, ["cache.nixos.org-1", "test-1"]);
    assert_eq!(PublicKey::parse_list(" \n").unwrap(), []);
    let bad = [
        "x",
        "x:",
        ":dWSd5g+klu9mVxPMmC9cmMSZ3SQP1w5eZmu1SxmtgXE=",
        "x:dWSd5g+klu9mVxPMmC9cmMSZ3SQP1w5eZmu1SxmtgXE",
        "x:AAAA",
    ];
    for text in bad {
        let message = PublicKey::parse_list(text).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("\"{text}\" is not a public key")),
            "{message}"
        );
    }
}

#[test]
fn cache_info_is_parsed() {
    let text = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n";
    let info = CacheInfo::parse(text).unwrap();
    assert_eq!(info.store_dir.as_deref(), Some("/nix/store"));
    assert_eq!((info.want_mass_query, info.priority), (true, Some(40)));
    let info = CacheInfo::parse(b"StoreDir: /gnu/store\n").unwrap();
    assert_eq!((info.want_mass_query, info.priority), (false, None));
    assert!(CacheInfo::parse(b"<html>\n").is_err());
    assert!(CacheInfo::parse(b"Priority: -1\n").is_err());
}
