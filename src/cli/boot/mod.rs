//! `lazystore boot`: how long a VM takes to boot, measured again and again.

mod once;
mod picture;
mod statistics;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::errors::{BootError, CliError};
use super::help;
use super::numbers;
use super::run::VmArgs;
use once::{Boot, Way};
use statistics::Series;

/// Arguments of `lazystore boot`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct BootArgs {
    /// Boot so many times
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = numbers::whole::<u32>(1..=10_000), help_heading = "Measuring")]
    runs: u32,
    /// A boot is over when the VM writes TEXT to its stdout; then it is ended [default: it ends itself]
    #[arg(long, value_name = "TEXT", help_heading = "Measuring")]
    until: Option<String>,
    /// A boot that takes longer is an error
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = numbers::whole::<u32>(1..=86_400), help_heading = "Measuring")]
    timeout: u32,
    /// Boot with this closure too, a store path or closureInfo's directory, by turns
    #[arg(long, value_name = "CLOSURE", help_heading = "Measuring")]
    vs: Option<PathBuf>,
    /// Boot with this image too, on QEMU's virtio-blk and without lazystore, by turns
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    image: Option<PathBuf>,
    /// Write all figures as JSON
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    json: Option<PathBuf>,
    /// Draw all boots
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    vm: VmArgs,
}

const EXAMPLES: &str = "\
Examples:
  lazystore boot ./result --until 'login:' -- qemu-system-x86_64 -nographic ...
  lazystore boot ./new --vs ./old --runs 20 --until 'login:' -- qemu-system-x86_64 ...
  lazystore boot ./result --image ./store.img --json boot.json -- qemu-system-x86_64 ...";

const HELP: &str = "\
The VM is started as `lazystore run` starts it, each time with a server of its own. Its stdout is read, so QEMU's console has \
to be there (-nographic, or -serial stdio). Times are milliseconds from the start: exec is when the VMM is started, connect \
when it comes to the disk, mount the guest's first look at the root directory, mark the text of --until, exit the VM's end.

The host's page cache is as warm as the boots before left it; the first boot may be slower.";

/// Boots and measures.
pub fn run(args: &BootArgs) -> Result<ExitCode, CliError> {
    let ways = args.ways()?;
    let mut series: Vec<Series> = ways.iter().map(|way| Series::new(way.name())).collect();
    for number in 1..=args.runs {
        for (way, series) in ways.iter().zip(&mut series) {
            let boot = Boot {
                number,
                until: args.until.as_deref(),
                limit: Duration::from_secs(args.timeout.into()),
            };
            series.add(&boot.measure(way)?);
        }
    }
    let mut stdout = io::stdout().lock();
    for one in &series {
        stdout.write_all(one.text().as_bytes())?;
    }
    if let [first, second] = &series[..] {
        stdout.write_all(statistics::ratio(first, second).as_bytes())?;
    }
    if let Some(file) = &args.json {
        let all: Vec<_> = series.iter().map(Series::json).collect();
        write(file, &format!("{}\n", serde_json::Value::from(all)))?;
    }
    if let Some(file) = &args.svg {
        write(file, &picture::svg(&series))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Result<(), BootError> {
    fs::write(path, text).map_err(|source| BootError::Write {
        path: path.to_owned(),
        source,
    })
}

impl BootArgs {
    fn ways(&self) -> Result<Vec<Way>, BootError> {
        let mut ways = vec![Way::Lazy {
            name: "lazystore".to_owned(),
            vm: Box::new(self.vm.clone()),
        }];
        if let Some(closure) = &self.vs {
            ways.push(Way::Lazy {
                name: closure.display().to_string(),
                vm: Box::new(self.vm.with_closure(closure)),
            });
        }
        if let Some(image) = &self.image {
            fs::File::open(image).map_err(|source| BootError::Image {
                path: image.clone(),
                source,
            })?;
            ways.push(Way::Image {
                image: image.clone(),
                command: self.vm.command.clone(),
            });
        }
        Ok(ways)
    }
}
