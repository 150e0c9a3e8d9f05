//! Edge cases of the command line: contradictory arguments, implausible values, and advice in errors.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lazystore::image::recording::Recording;

const NAME: &str = "00000000000000000000000000000000-hello";

/// A chroot store in `root`, a tree, and a non-empty directory.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/nix/store").join(NAME)).unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        fs::write(dir.path().join("tree/file"), "content").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lazystore(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
        command.current_dir(self.dir.path()).args(args);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.dir.path()).unwrap();
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Runs a command that must fail with `code` and leave nothing behind. Returns its stderr.
    fn stderr_of(&self, args: &[&str], code: i32) -> String {
        let before = self.files();
        let output = self.lazystore(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert_eq!(self.files(), before, "{args:?} left something behind");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The same for a command whose stderr must be one sentence.
    fn sentence(&self, args: &[&str], code: i32) -> String {
        let text = self.stderr_of(args, code);
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(!text.contains("os error"), "{text}");
        text
    }
}

#[test]
fn contradictory_arguments_are_refused_in_one_sentence() {
    let fixture = Fixture::new();
    let cases: [(&[&str], i32, &[&str]); 6] = [
        (
            &["--record", "x.sock", "--vhost-user", "x.sock"],
            2,
            &["x.sock", "--record", "--vhost-user"],
        ),
        (
            &["--recording", "./x.sock", "--vhost-user", "x.sock"],
            2,
            &["x.sock", "--recording", "--vhost-user"],
        ),
        (
            &["--vhost-user", "x.sock", "--vhost-user", "tree/../x.sock"],
            2,
            &["x.sock", "twice"],
        ),
        (
            &["--fuse", "empty", "--vhost-user", "empty/x.sock"],
            2,
            &["empty/x.sock", "hidden", "--fuse"],
        ),
        (
            &["--fuse", "empty", "--record", "empty/x"],
            2,
            &["empty/x", "hidden", "--fuse"],
        ),
        (&["--fuse", "."], 1, &["is not empty", "--fuse"]),
    ];
    for (args, code, words) in cases {
        let text = fixture.sentence(&[&["serve", "--tree", "tree"], args].concat(), code);
        assert!(
            words.iter().all(|word| text.contains(word)),
            "{text} should mention {words:?}"
        );
    }
}

#[test]
fn implausible_values_are_refused() {
    let fixture = Fixture::new();
    let serial = "s".repeat(21);
    let cases: [(&[&str], &str); 10] = [
        (&["--store-root", "root"], "--store-root"),
        (&["--store-dir", "/nix/store"], "--store-dir"),
        (&["--serial", &serial], "at most 20"),
        (&["--label", ""], "empty"),
        (&["--label", "sixteen-letters!"], "at most 15"),
        (&["--threads", "0"], "from 1 to 64"),
        (&["--threads", "100000"], "from 1 to 64"),
        (&["--threads", "many"], "from 1 to 64"),
        (&["--mtime", "-1"], "unexpected argument"),
        (&["--uid", "x"], "expected a whole number"),
    ];
    for (args, words) in cases {
        let all = [&["serve", "--tree", "tree", "--vhost-user", "x.sock"], args].concat();
        let text = fixture.stderr_of(&all, 2);
        assert!(text.contains(words), "{text}");
        for rust in ["digit", "non-zero", "type"] {
            assert!(!text.contains(rust), "{text}");
        }
    }
}

#[test]
fn of_many_missing_paths_three_are_named_and_the_rest_counted() {
    let fixture = Fixture::new();
    let list = |count: u32| -> String {
        let lines = (0..count).map(|n| format!("/nix/store/{n:032}-x\n"));
        lines.collect()
    };
    let last_line = |count: u32| {
        fs::write(fixture.path("list"), list(count)).unwrap();
        let text = fixture.stderr_of(
            &["verify", "--store-paths", "list", "--store-root", "root"],
            1,
        );
        // A warning about descriptors may precede it.
        text.lines().next_back().unwrap().to_owned()
    };
    let one = last_line(1);
    assert!(
        one.contains("1 of the closure's paths does not exist:"),
        "{one}"
    );
    assert!(!one.contains("more"), "{one}");
    let many = last_line(300_000);
    assert!(
        many.contains("300000 of the closure's paths do not exist:"),
        "{many}"
    );
    assert!(many.contains(" and 299997 more "), "{many}");
    assert!(many.len() < 500, "{} bytes", many.len());
}

#[test]
fn a_list_with_carriage_returns_is_explained() {
    let fixture = Fixture::new();
    fs::write(fixture.path("list"), format!("/nix/store/{NAME}\r\n")).unwrap();
    let text = fixture.sentence(
        &["verify", "--store-paths", "list", "--store-root", "root"],
        1,
    );
    assert!(
        text.contains("line 1: the line ends with a carriage return"),
        "{text}"
    );
    assert!(!text.contains('\r'), "{text:?}");
}

#[test]
fn a_wrong_root_is_reported_with_matching_advice() {
    let fixture = Fixture::new();
    let store_path = format!("root/nix/store/{NAME}");
    symlink(fixture.path(&store_path), fixture.path("result")).unwrap();
    let chroot = format!("--store-root {}", fixture.path("root").display());
    let cases = [
        (vec!["absent"], "nix build"),
        (vec!["tree"], "--tree"),
        (vec!["result"], chroot.as_str()),
        (vec![store_path.as_str()], chroot.as_str()),
        (vec!["root/nix/store"], "--all --store-root"),
        (vec!["/nix/store"], "pass --all"),
        (vec!["--closure-info", "result"], "without an option"),
        (vec!["--store-paths", "result"], "without an option"),
        (vec!["--tree", "tree/file"], "--tree takes"),
    ];
    for (args, advice) in cases {
        let text = fixture.sentence(&[&["verify"], &args[..]].concat(), 1);
        assert!(text.contains(advice), "{args:?}: {text}");
    }
}

#[test]
fn failures_of_run_itself_have_their_own_exit_code() {
    let fixture = Fixture::new();
    let run = |args: &[&str]| fixture.lazystore(&[&["run"], args].concat()).status.code();
    assert_eq!(
        run(&["--tree", "absent", "--", "true", "{socket}"]),
        Some(125)
    );
    assert_eq!(run(&["--tree", "tree", "--", "true"]), Some(125));
    assert_eq!(run(&["--no-such-option"]), Some(125));
    assert_eq!(
        run(&["--tree", "tree", "--", "/absent", "{socket}"]),
        Some(127)
    );
    assert_eq!(
        run(&["--tree", "tree", "--", "./tree/file", "{socket}"]),
        Some(126)
    );
    assert_eq!(
        run(&["--tree", "tree", "--", "sh", "-c", ": {socket}; exit 2"]),
        Some(2)
    );
    assert_eq!(run(&["--help"]), Some(0));
    assert_eq!(
        fixture
            .lazystore(&["--log-format", "json", "run"])
            .status
            .code(),
        Some(125)
    );
    assert_eq!(
        fixture.lazystore(&["serve", "--tree", "run"]).status.code(),
        Some(2)
    );
}

#[test]
fn a_directory_that_cannot_be_created_is_named() {
    let fixture = Fixture::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lazystore"));
    command.args(["run", "--tree", "tree", "--", "true", "{socket}"]);
    command.current_dir(fixture.dir.path());
    command
        .env_remove("XDG_RUNTIME_DIR")
        .env("TMPDIR", "/absent");
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text.contains(" in /absent: No such file"), "{text}");
}

#[test]
fn the_doctor_refuses_a_missing_kernel() {
    let fixture = Fixture::new();
    for kernel in ["absent", "tree"] {
        let text = fixture.sentence(&["doctor", "--kernel", kernel], 1);
        assert!(
            text.contains(&format!("cannot read the kernel {kernel}: ")),
            "{text}"
        );
    }
}

/// `lazystore run` with the recording `FILE`, and a program instead of a VMM, which reads the disk as a file.
fn run_recorded(fixture: &Fixture, tree: &str, file: &str, script: &str) -> (bool, String) {
    let command = format!("{script} # {{image}}");
    let output = fixture.lazystore(&[
        "run",
        "--tree",
        tree,
        "--recording",
        file,
        "--",
        "sh",
        "-c",
        &command,
    ]);
    (
        output.status.success(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn is_recording(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| Recording::parse(&text).is_ok())
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn the_first_run_records_and_later_runs_keep_the_recording() {
    let fixture = Fixture::new();
    let file = fixture.path("boot.rec");
    let read = "head -c 200000 {image} >/dev/null";
    // A run that reads nothing or fails leaves no recording.
    let (ok, text) = run_recorded(&fixture, "tree", "boot.rec", "true");
    assert!(ok && !file.exists(), "{text}");
    let (ok, text) = run_recorded(&fixture, "absent", "boot.rec", "true");
    assert!(!ok && !file.exists(), "{text}");
    // The first boot records.
    let (ok, text) = run_recorded(&fixture, "tree", "boot.rec", read);
    assert!(ok, "{text}");
    assert!(is_recording(&file));
    // The second run does not change the recording.
    let before = fs::read(&file).unwrap();
    let (ok, text) = run_recorded(&fixture, "tree", "boot.rec", read);
    assert!(ok, "{text}");
    assert_eq!(fs::read(&file).unwrap(), before);
    // An invalid recording is replaced, with a warning.
    fs::write(&file, "something else\n").unwrap();
    let (ok, text) = run_recorded(&fixture, "tree", "boot.rec", read);
    assert!(ok && text.contains("recorded again"), "{text}");
    assert!(is_recording(&file));
    // A file that cannot be written is also a warning.
    let (ok, text) = run_recorded(&fixture, "tree", "absent/boot.rec", read);
    assert!(ok && text.contains("cannot write the recording"), "{text}");
}

/// Output of `lazystore ARGS` on a terminal.
fn on_a_terminal(fixture: &Fixture, args: &str, no_color: &str) -> String {
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command"]);
    script.arg(format!("{} {args}", env!("CARGO_BIN_EXE_lazystore")));
    script.arg("/dev/null").current_dir(fixture.dir.path());
    script.env("TERM", "xterm").env("NO_COLOR", no_color);
    let output = script.stdin(Stdio::null()).output();
    let output = output.expect("script of util-linux, which every Linux has");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs script"]
fn terminals_get_colours_unless_disabled() {
    let fixture = Fixture::new();
    let sentence = "verify --tree absent";
    let coloured = on_a_terminal(&fixture, sentence, "");
    assert!(
        coloured.contains("\x1b[1;31mlazystore:\x1b[0m the tree absent"),
        "{coloured:?}"
    );
    let plain = on_a_terminal(&fixture, sentence, "1");
    assert!(plain.starts_with("lazystore: the tree absent"), "{plain:?}");
    // Without a terminal there are no colours in any case.
    assert!(
        !fixture
            .sentence(&["verify", "--tree", "absent"], 1)
            .contains('\x1b')
    );
}

/// Errors of the library name no flags. Only the command line adds hints.
#[test]
fn errors_of_the_closure_and_the_disk_name_no_flags() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut dirs: Vec<_> = ["closure", "erofs", "image", "verify"]
        .map(|dir| src.join(dir))
        .into();
    let mut texts = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for error in text.split("#[error(").skip(1) {
                let message = error.split(")]").next().unwrap();
                texts += 1;
                // `nix-store --realise` is a command of another program.
                let own = message.replace("nix-store --", "");
                assert!(
                    !own.contains(" --") && !own.contains("\"--"),
                    "{}: {message}",
                    path.display()
                );
            }
        }
    }
    assert!(texts > 20, "{texts} messages were looked at");
}
