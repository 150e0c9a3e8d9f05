//! Logging to stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use clap::ValueEnum;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::text;

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line, with `timestamp`, `level`, `fields.message` and `target`.
    Json,
}

/// The format chosen on the command line; unset in programs that use the library.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Sends log lines to stderr. `RUST_LOG` (such as `debug` or `lazystore=trace`) overrides `verbose`.
pub fn init(verbose: u8, format: LogFormat) {
    let _ = FORMAT.set(format);
    let level = match verbose {
        0 => "warn,lazystore=info",
        1 => "warn,lazystore=debug",
        _ => "warn,lazystore=trace",
    };
    let asked = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let parsed = asked.as_deref().map(EnvFilter::try_new);
    let wrong = matches!(parsed, Some(Err(_)));
    let filter = parsed
        .and_then(Result::ok)
        .unwrap_or_else(|| EnvFilter::new(level));
    let lines = fmt::layer()
        .with_ansi(format == LogFormat::Text && text::is_coloured(&io::stderr()))
        .with_writer(|| Stderr);
    let registry = tracing_subscriber::registry().with(filter);
    // If a program that uses the library has set a subscriber already, it stays.
    let _ = match format {
        LogFormat::Text => registry
            .with(lines.without_time().with_target(false))
            .try_init(),
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
    if wrong {
        tracing::warn!(
            "RUST_LOG is malformed: write, for example, RUST_LOG=debug or RUST_LOG=lazystore=trace"
        );
    }
}

/// Prints the error that ends the program.
pub fn fatal(error: &dyn std::error::Error) {
    if is_json() {
        tracing::error!("{error}");
        return;
    }
    let name = match text::is_coloured(&io::stderr()) {
        true => "\x1b[1;31mlazystore:\x1b[0m",
        false => "lazystore:",
    };
    // An error is ignored: stderr may be closed.
    let _ = Stderr.write_all(format!("{name} {error}\n").as_bytes());
}

/// Writes each log line to stderr with one system call.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = text::without_errno(&String::from_utf8_lossy(line));
        io::stderr().lock().write_all(text.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints lines for a person to read and paste. They are left out of JSON logs.
pub fn hint(lines: &str) {
    if !is_json() {
        eprint!("{lines}");
    }
}

/// Returns whether a person may be watching stderr, that is, it is a terminal.
pub fn is_read_live() -> bool {
    !is_json() && io::stderr().is_terminal()
}

fn is_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}
