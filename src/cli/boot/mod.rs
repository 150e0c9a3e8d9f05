//! `lazystore boot`: boots a VM repeatedly and measures how long it takes.

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
use once::{Boot, DiskSource};
use statistics::Series;

/// Arguments of `lazystore boot`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = help::long(EXAMPLES, HELP))]
pub struct BootArgs {
    /// Number of boots
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = numbers::whole::<u32>(1..=10_000), help_heading = "Measuring")]
    runs: u32,
    /// A boot ends when the VM prints TEXT to stdout; then the VM is stopped [default: when the VM exits]
    #[arg(long, value_name = "TEXT", help_heading = "Measuring")]
    until: Option<String>,
    /// Fail if a boot takes longer
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = numbers::whole::<u32>(1..=86_400), help_heading = "Measuring")]
    timeout: u32,
    /// Also boot with this closure (a store path or the output of closureInfo), alternating
    #[arg(long, value_name = "CLOSURE", help_heading = "Measuring")]
    vs: Option<PathBuf>,
    /// Also boot with this image through QEMU's virtio-blk, without lazystore, alternating
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    image: Option<PathBuf>,
    /// Write all results as JSON
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    json: Option<PathBuf>,
    /// Draw a chart of all boots
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
Each boot starts the VM like `lazystore run`, with a new server. The guest's console must be QEMU's stdout \
(-nographic, or -serial stdio). Times are milliseconds from the start: exec is when the VMM is started, connect when \
it connects to the disk, mount when the guest first reads the root directory, mark when it prints the text of --until, \
exit when the VM ends.

The host's page cache is not dropped between boots, so the first boot may be slower.";

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
    fn ways(&self) -> Result<Vec<DiskSource>, BootError> {
        let mut ways = vec![DiskSource::Lazy {
            name: "lazystore".to_owned(),
            vm: Box::new(self.vm.clone()),
        }];
        if let Some(closure) = &self.vs {
            ways.push(DiskSource::Lazy {
                name: closure.display().to_string(),
                vm: Box::new(self.vm.with_closure(closure)),
            });
        }
        if let Some(image) = &self.image {
            fs::File::open(image).map_err(|source| BootError::Image {
                path: image.clone(),
                source,
            })?;
            ways.push(DiskSource::Image {
                image: image.clone(),
                command: self.vm.command.clone(),
            });
        }
        Ok(ways)
    }
}
