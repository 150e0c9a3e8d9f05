//! One boot.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::super::errors::BootError;
use super::super::run::{self, VmArgs};
use crate::process::{self, Child};
use crate::server::BootReport;

/// How long a VM may take to end once it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// What is kept of a VM's output: the mark may lie across two reads, and the end of it explains a failure.
const KEPT_BYTES: usize = 64 << 10;

/// How the VM gets its disk.
pub enum Way {
    /// From lazystore.
    Lazy {
        /// What it is called.
        name: String,
        /// How it is started.
        vm: Box<VmArgs>,
    },
    /// From an image, by QEMU itself.
    Image {
        /// The file.
        image: PathBuf,
        /// The VMM.
        command: Vec<OsString>,
    },
}

/// What one boot took. Times are in milliseconds from the start.
#[derive(Debug, Default)]
pub struct Took {
    /// When phases were over, as far as they are known.
    pub phases: Vec<(&'static str, f64)>,
    /// Requests, and bytes that were read, if lazystore served them.
    pub read: Option<(u64, u64)>,
}

/// A boot that is to be measured.
pub struct Boot<'b> {
    /// Which one, for messages.
    pub number: u32,
    /// What the VM writes at its end.
    pub until: Option<&'b str>,
    /// How long it may take.
    pub limit: Duration,
}

impl Way {
    /// For people.
    pub fn name(&self) -> String {
        match self {
            Self::Lazy { name, .. } => name.clone(),
            Self::Image { image, .. } => format!("virtio-blk, {}", image.display()),
        }
    }

    /// The life of the process that boots; returns only when that is over.
    fn become_it(&self, start: Instant, report: &Path) -> u8 {
        match self {
            Self::Lazy { vm, .. } => run::run_reported(vm, start, report),
            Self::Image { image, command } => {
                let mut drive = OsString::from("format=raw,if=virtio,read-only=on,file=");
                // QEMU's options have commas between them.
                drive.push(image.to_string_lossy().replace(',', ",,"));
                let mut words = command.iter();
                let Some(program) = words.next() else {
                    return run::EXIT_OWN_FAILURE;
                };
                let error = Command::new(program)
                    .args(words)
                    .arg("-drive")
                    .arg(drive)
                    .exec();
                let _ = writeln!(io::stderr(), "cannot start {}: {error}", program.display());
                run::EXIT_OWN_FAILURE
            }
        }
    }
}

impl Boot<'_> {
    /// Boots, and waits for the end.
    ///
    /// # Errors
    /// When the VM does not say what it should, or ends badly without having been asked to.
    pub fn measure(&self, way: &Way) -> Result<Took, BootError> {
        let fault = BootError::host;
        let dir = run::PrivateDir::create().map_err(fault("make a directory"))?;
        let (report, log) = (dir.path().join("report"), dir.path().join("log"));
        let (mut output, writer) = io::pipe().map_err(fault("create a pipe"))?;
        let errors = File::create(&log).map_err(fault("write a log"))?;
        let start = Instant::now();
        let mut child =
            process::spawn(Signal::SIGTERM, || match redirect(writer.into(), &errors) {
                Ok(()) => way.become_it(start, &report),
                Err(_) => run::EXIT_OWN_FAILURE,
            })
            .map_err(BootError::Process)?;
        let watched = self.watch(&mut output, &mut child, start);
        // Ends what is still there, whatever came of it.
        let end = child.stop(GRACE);
        let exit = millis(start.elapsed());
        let said = fs::read_to_string(&log).unwrap_or_default();
        let made = fs::read(&report);
        for file in [&report, &log] {
            let _ = fs::remove_file(file);
        }
        let mark = watched.map_err(|why| self.explain(why, &said))?;
        if mark.is_none() && end != Some(process::End::Exited(0)) {
            return Err(self.explain(Failure::Ended(Vec::new()), &said));
        }
        let report: Option<BootReport> = made
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        Ok(took(report.as_ref(), mark, exit))
    }

    /// Reads what the VM writes until the mark comes; when that was, or none if the VM ended by itself as it should.
    fn watch(
        &self,
        output: &mut PipeReader,
        child: &mut Child,
        start: Instant,
    ) -> Result<Option<f64>, Failure> {
        let mut seen = Vec::new();
        loop {
            let left = self.limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Failure::Late(seen));
            }
            let millis_left = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
            let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
            if !poll(&mut fds, PollTimeout::from(millis_left)).is_ok_and(|ready| ready > 0) {
                continue;
            }
            let mut buffer = [0; 8192];
            let count = output.read(&mut buffer).unwrap_or(0);
            let now = millis(start.elapsed());
            if count == 0 {
                return match self.until {
                    Some(_) => Err(Failure::Ended(seen)),
                    None => self
                        .await_end(child, start)
                        .then_some(None)
                        .ok_or(Failure::Late(seen)),
                };
            }
            seen.extend_from_slice(&buffer[..count]);
            if self
                .until
                .is_some_and(|mark| contains(&seen, mark.as_bytes()))
            {
                return Ok(Some(now));
            }
            let surplus = seen.len().saturating_sub(KEPT_BYTES);
            seen.drain(..surplus);
        }
    }

    fn await_end(&self, child: &mut Child, start: Instant) -> bool {
        while child.end().is_none() {
            if start.elapsed() >= self.limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn explain(&self, why: Failure, said: &str) -> BootError {
        let (seen, late) = match why {
            Failure::Late(seen) => (seen, true),
            Failure::Ended(seen) => (seen, false),
        };
        let seen = String::from_utf8_lossy(&seen).into_owned();
        let last = |text: &str| {
            let mut lines = text.lines().rev().map(str::trim);
            let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
            line.chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect::<String>()
        };
        let last = match last(&seen) {
            line if line.is_empty() => last(said),
            line => line,
        };
        match (late, self.until) {
            (true, Some(mark)) => BootError::NoMark {
                run: self.number,
                mark: mark.to_owned(),
                seconds: self.limit.as_secs(),
                last,
            },
            (true, None) => BootError::Late {
                run: self.number,
                seconds: self.limit.as_secs(),
            },
            (false, _) => BootError::Ended {
                run: self.number,
                last,
            },
        }
    }
}

/// Why a boot was not measured, with the end of what the VM wrote.
enum Failure {
    Late(Vec<u8>),
    Ended(Vec<u8>),
}

/// The VM reads nothing, and writes to this program.
fn redirect(output: OwnedFd, errors: &File) -> io::Result<()> {
    dup2_stdin(File::open("/dev/null")?)?;
    dup2_stdout(output)?;
    dup2_stderr(errors)?;
    Ok(())
}

fn took(report: Option<&BootReport>, mark: Option<f64>, exit: f64) -> Took {
    let of_report = [
        ("exec", "ready"),
        ("connect", "connected"),
        ("first read", "first read"),
        ("mount", "mounted"),
    ];
    let of_report = of_report
        .into_iter()
        .filter_map(|(phase, event)| Some((phase, report?.at(event)?)));
    let ends = [("mark", mark), ("exit", Some(exit))];
    let ends = ends
        .into_iter()
        .filter_map(|(phase, ms)| Some((phase, ms?)));
    Took {
        phases: of_report.chain(ends).collect(),
        read: report.map(|report| {
            let totals = &report.totals;
            (
                totals.requests,
                totals.meta_bytes.saturating_add(totals.data_bytes),
            )
        }),
    }
}

fn contains(text: &[u8], mark: &[u8]) -> bool {
    !mark.is_empty() && text.windows(mark.len()).any(|part| part == mark)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
