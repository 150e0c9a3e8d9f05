//! A QEMU that is booted once and restored from then on.
//!
//! The file begins with a line that says of which disk and command it is; what follows is QEMU's migration stream. QEMU
//! writes it when the guest has said that it is ready, and goes on. A file of another disk or command is made anew.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::cli::qemu_text::qemu_escape;
use crate::closure::nix32;

/// How long between two looks at whether QEMU has written everything.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Whether to save the VM, and when.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "The next boot")]
pub struct SnapshotArgs {
    /// Save QEMU in FILE once its output has the text of --snapshot-at, and restore it from FILE from then on; booted and
    /// saved again when the disk or the command is another one. Its writable disks must be as they were
    #[arg(long, value_name = "FILE", conflicts_with = "tree")]
    snapshot: Option<PathBuf>,
    /// What the guest says on its console, which QEMU writes to stdout, when it is to be saved
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "lazystore: snapshot",
        requires = "snapshot"
    )]
    snapshot_at: String,
}

/// What is to be done with QEMU.
pub struct Snapshot {
    file: PathBuf,
    /// First line of the file.
    line: String,
    /// Where QEMU can be told to save.
    control: PathBuf,
    mark: Vec<u8>,
    /// What is restored, after its first line; none if it is to be made.
    saved: Option<File>,
}

impl SnapshotArgs {
    pub fn is_wanted(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Looks for a file of this disk and `command`; `control` is where a socket may be made.
    pub fn find(&self, disk: &str, command: &[OsString], control: &Path) -> Option<Snapshot> {
        let file = self.snapshot.clone()?;
        let line = first_line(disk, command);
        let saved = open(&file, &line);
        Some(Snapshot {
            file,
            line,
            control: control.to_owned(),
            mark: self.snapshot_at.clone().into_bytes(),
            saved,
        })
    }
}

/// The same for one disk and one command of one version of QEMU.
fn first_line(disk: &str, command: &[OsString]) -> String {
    let version = command.first().and_then(|program| {
        let output = Command::new(program).arg("--version").output();
        Some(output.ok()?.stdout)
    });
    let mut hash = Sha256::new();
    let words = command.iter().map(|word| word.as_bytes());
    for word in words.chain([disk.as_bytes(), &version.unwrap_or_default()]) {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word);
    }
    format!("lazystore snapshot 1 {}\n", nix32(&hash.finalize()))
}

/// The file, after its first line, if that is `line`.
fn open(path: &Path, line: &str) -> Option<File> {
    let mut file = File::open(path).ok()?;
    let mut found = String::new();
    let limit = line.len() as u64;
    BufReader::new(Read::by_ref(&mut file).take(limit))
        .read_line(&mut found)
        .ok()?;
    file.seek(SeekFrom::Start(limit)).ok()?;
    (found == line).then_some(file)
}

impl Snapshot {
    pub fn is_saved(&self) -> bool {
        self.saved.is_some()
    }

    /// What QEMU is told besides its own arguments.
    pub fn arguments(&self) -> [OsString; 2] {
        match &self.saved {
            Some(file) => [
                "-incoming".into(),
                format!("fd:{}", file.as_raw_fd()).into(),
            ],
            None => {
                let place = qemu_escape(&self.control);
                let server = format!("unix:{place},server=on,wait=off");
                ["-qmp".into(), server.into()]
            }
        }
    }

    /// In the process that becomes QEMU: it keeps the file.
    pub fn pass_on(&self) -> io::Result<()> {
        let flags = rustix::io::FdFlags::empty();
        let kept = self
            .saved
            .as_ref()
            .map(|file| rustix::io::fcntl_setfd(file, flags));
        Ok(kept.unwrap_or(Ok(()))?)
    }

    /// Starts a thread that writes to stdout what comes from QEMU, and saves it when the mark has come.
    pub fn watch(self, output: PipeReader) -> io::Result<thread::JoinHandle<()>> {
        let thread = thread::Builder::new().name("snapshot".to_owned());
        thread.spawn(move || self.copy(output))
    }

    fn copy(&self, mut output: PipeReader) {
        let (mut seen, mut buffer) = (Some(Vec::new()), [0; 4096]);
        while let Ok(len @ 1..) = output.read(&mut buffer) {
            // Nobody may read it any more; QEMU goes on all the same.
            let _ = io::stdout().write_all(&buffer[..len]);
            let _ = io::stdout().flush();
            let Some(text) = &mut seen else { continue };
            text.extend_from_slice(&buffer[..len]);
            if text
                .windows(self.mark.len().max(1))
                .any(|part| part == self.mark)
            {
                seen = None;
                self.save();
            } else {
                let old = text.len().saturating_sub(self.mark.len());
                text.drain(..old);
            }
        }
        if seen.is_some() {
            tracing::warn!(
                "the VM ended and has not said \"{}\", so no snapshot was made",
                String::from_utf8_lossy(&self.mark)
            );
        }
    }

    /// What goes wrong with it is no reason to end the VM.
    fn save(&self) {
        // Several VMs may do so at the same time; the last one counts.
        let part = self
            .file
            .with_added_extension(std::process::id().to_string());
        let saved = self
            .save_to(&part)
            .and_then(|()| fs::rename(&part, &self.file));
        match saved {
            Ok(()) => tracing::info!(file = %self.file.display(), "the VM has been saved"),
            Err(error) => {
                tracing::error!("the VM cannot be saved in {}: {error}", self.file.display());
                let _ = fs::remove_file(&part);
            }
        }
    }

    fn save_to(&self, part: &Path) -> io::Result<()> {
        // The guest's memory is nobody else's business.
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(part)?;
        file.write_all(self.line.as_bytes())?;
        let mut qemu = Control::connect(&self.control)?;
        let written = qemu.write_to(&file);
        // Whether it worked or not, the VM goes on.
        let resumed = qemu.run("cont", json!({}), None).map(|_| ());
        written.and(resumed)
    }
}

/// QEMU's control socket (docs/interop/qmp-spec.rst).
struct Control(BufReader<UnixStream>);

impl Control {
    fn connect(path: &Path) -> io::Result<Self> {
        let mut control = Self(BufReader::new(UnixStream::connect(path)?));
        control.read()?;
        control.run("qmp_capabilities", json!({}), None)?;
        Ok(control)
    }

    /// Writes the VM to a file, from where the file is; the VM runs until the last moment.
    fn write_to(&mut self, file: &File) -> io::Result<()> {
        let limits = json!({"max-bandwidth": 1_u64 << 40, "downtime-limit": 2000});
        self.run("migrate-set-parameters", limits, None)?;
        self.run("getfd", json!({"fdname": "snapshot"}), Some(file))?;
        self.run("migrate", json!({"uri": "fd:snapshot"}), None)?;
        loop {
            let state = self.run("query-migrate", json!({}), None)?;
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(io::Error::other(state["error-desc"].to_string()));
                }
                _ => thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Runs a command, with a descriptor if one is given; what it returns. Events are passed over.
    fn run(&mut self, command: &str, arguments: Value, file: Option<&File>) -> io::Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        match file {
            Some(file) => {
                let stream = self.0.get_ref();
                stream.send_with_fd(line.as_bytes(), file.as_raw_fd())?;
            }
            None => self.0.get_mut().write_all(line.as_bytes())?,
        }
        loop {
            let mut answer = self.read()?;
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!("QEMU says {}", error["desc"])));
            }
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}
