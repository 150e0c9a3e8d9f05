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

/// How long to wait for a VM to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// How much of a VM's output to keep: the mark may span two reads, and the last line explains a failure.
const KEPT_BYTES: usize = 64 << 10;

/// Where the VM's disk comes from.
pub enum DiskSource {
    /// From lazystore.
    Lazy {
        /// Its name in the results.
        name: String,
        /// The VM and its disk.
        vm: Box<VmArgs>,
    },
    /// From an image file, through QEMU's virtio-blk.
    Image {
        /// The file.
        image: PathBuf,
        /// The VMM and its arguments.
        command: Vec<OsString>,
    },
}

/// The result of one boot. Times are in milliseconds from the start.
#[derive(Debug, Default)]
pub struct Took {
    /// When each phase ended, as far as known.
    pub phases: Vec<(&'static str, f64)>,
    /// Number of requests and of bytes read, if lazystore served the disk.
    pub read: Option<(u64, u64)>,
}

/// One boot to measure.
pub struct Boot<'b> {
    /// Its number, for messages.
    pub number: u32,
    /// The text that ends the boot.
    pub until: Option<&'b str>,
    /// Time limit.
    pub limit: Duration,
}

impl DiskSource {
    /// Returns its name in the results.
    pub fn name(&self) -> String {
        match self {
            Self::Lazy { name, .. } => name.clone(),
            Self::Image { image, .. } => format!("virtio-blk, {}", image.display()),
        }
    }

    /// Runs the VM in this process. Returns the exit code.
    fn run(&self, start: Instant, report: &Path) -> u8 {
        match self {
            Self::Lazy { vm, .. } => run::run_reported(vm, start, report),
            Self::Image { image, command } => {
                let mut drive = OsString::from("format=raw,if=virtio,read-only=on,file=");
                // QEMU options escape a comma by doubling it.
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
    /// Boots the VM and waits until the boot ends.
    ///
    /// # Errors
    /// The VM does not print the mark in time, or fails.
    pub fn measure(&self, way: &DiskSource) -> Result<Took, BootError> {
        let fault = BootError::host;
        let dir = run::PrivateDir::create().map_err(fault("create a directory"))?;
        let (report, log) = (dir.path().join("report"), dir.path().join("log"));
        let (mut output, writer) = io::pipe().map_err(fault("create a pipe"))?;
        let errors = File::create(&log).map_err(fault("write a log"))?;
        let start = Instant::now();
        let mut child =
            process::spawn(Signal::SIGTERM, || match redirect(writer.into(), &errors) {
                Ok(()) => way.run(start, &report),
                Err(_) => run::EXIT_OWN_FAILURE,
            })
            .map_err(BootError::Process)?;
        let watched = self.watch(&mut output, &mut child, start);
        // Stop the VM if it is still running.
        let end = child.stop(GRACE);
        let exit = millis(start.elapsed());
        let stderr = fs::read_to_string(&log).unwrap_or_default();
        let made = fs::read(&report);
        for file in [&report, &log] {
            let _ = fs::remove_file(file);
        }
        let mark = watched.map_err(|why| self.explain(why, &stderr))?;
        if mark.is_none() && end != Some(process::End::Exited(0)) {
            return Err(self.explain(Failure::Ended(Vec::new()), &stderr));
        }
        let report: Option<BootReport> = made
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        Ok(took(report.as_ref(), mark, exit))
    }

    /// Reads the VM's output until the mark, and returns its time. `None` if no mark is expected and the VM has ended.
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

    fn explain(&self, why: Failure, stderr: &str) -> BootError {
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
            line if line.is_empty() => last(stderr),
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

/// Why a boot failed, with the last part of the VM's output.
enum Failure {
    Late(Vec<u8>),
    Ended(Vec<u8>),
}

/// Redirects stdin from /dev/null, stdout to the pipe, and stderr to the log.
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
