//! Memory options of QEMU: a vhost-user backend needs shared memory.

use super::options::{Options, Properties, last};
use crate::cli::errors::VmmError;

/// Memory size without `-m`, on x86 and on Arm's virt machine (`default_ram_size`).
const DEFAULT_BYTES: u64 = 128 << 20;
/// Id of the backend that is added.
const OUR_ID: &str = "lazystore-mem";

/// Returns the options to add so that the memory is shared; empty if it already is.
pub fn additions(options: &Options) -> Result<Vec<String>, VmmError> {
    if let Some(path) = options.values("mem-path").next_back() {
        return Err(VmmError::MemPath {
            path: path.to_owned(),
        });
    }
    let size = memory_size(options)?;
    let backends = Backend::all(options)?;
    let in_use = ids_in_use(options);
    let used = |backend: &&Backend| {
        in_use.machine.contains(&backend.id) || in_use.numa.contains(&backend.id)
    };
    for backend in backends.iter().filter(used) {
        backend.must_be_shared()?;
        if in_use.machine.contains(&backend.id) {
            backend.must_have(size)?;
        }
    }
    if !in_use.machine.is_empty() || !in_use.numa.is_empty() {
        return Ok(Vec::new());
    }
    let machine = |id: &str| ["-machine".to_owned(), format!("memory-backend={id}")];
    let mut idle = backends
        .iter()
        .filter(|backend| !in_use.devices.contains(&backend.id));
    if let Some(backend) = idle.next() {
        backend.must_be_shared()?;
        backend.must_have(size)?;
        return Ok(machine(&backend.id).into());
    }
    let bytes = size.unwrap_or(DEFAULT_BYTES);
    let backend = format!(
        "memory-backend-memfd,id={OUR_ID},size={},share=on",
        text_of(bytes)
    );
    Ok(["-object".to_owned(), backend]
        .into_iter()
        .chain(machine(OUR_ID))
        .collect())
}

/// Ids of the backends that are in use.
struct BackendIds {
    /// By the machine.
    machine: Vec<String>,
    /// By a NUMA node.
    numa: Vec<String>,
    /// By a device, such as a DIMM.
    devices: Vec<String>,
}

fn ids_in_use(options: &Options) -> BackendIds {
    let of = |all: &[Properties], name: &str| {
        let ids = all.iter().filter_map(|properties| properties.get(name));
        ids.map(str::to_owned).collect::<Vec<_>>()
    };
    BackendIds {
        machine: of(&machine(options), "memory-backend"),
        numa: of(&options.properties("numa", "type"), "memdev"),
        devices: of(&options.properties("device", "driver"), "memdev"),
    }
}

/// Returns the properties given with `-machine` and `-M`.
pub fn machine(options: &Options) -> Vec<Properties> {
    let mut all = options.properties("machine", "type");
    all.extend(options.properties("M", "type"));
    all
}

/// A memory backend object.
struct Backend {
    kind: String,
    id: String,
    share: Option<String>,
    size_bytes: Option<u64>,
}

impl Backend {
    fn all(options: &Options) -> Result<Vec<Self>, VmmError> {
        let objects = options.properties("object", "qom-type");
        objects.iter().filter_map(Self::of).collect()
    }

    fn of(object: &Properties) -> Option<Result<Self, VmmError>> {
        let kind = object.get("qom-type")?;
        if !kind.starts_with("memory-backend-") {
            return None;
        }
        let size = object.get("size").map(|text| parse_size(text, 1));
        Some(size.transpose().map(|size_bytes| Self {
            kind: kind.to_owned(),
            id: object.get("id").unwrap_or_default().to_owned(),
            share: object.get("share").map(str::to_owned),
            size_bytes,
        }))
    }

    /// An error if the backend is not shared. The default of `share` is on for memfd and shm, and off for all others.
    fn must_be_shared(&self) -> Result<(), VmmError> {
        let shared = match self.share.as_deref() {
            Some("on" | "yes" | "true" | "y") => true,
            Some(_) => false,
            None => matches!(&*self.kind, "memory-backend-memfd" | "memory-backend-shm"),
        };
        if shared {
            return Ok(());
        }
        Err(VmmError::NotShared {
            what: format!("-object {},id={}", self.kind, self.id),
        })
    }

    fn must_have(&self, memory: Option<u64>) -> Result<(), VmmError> {
        match (memory, self.size_bytes) {
            (Some(memory), Some(backend)) if memory != backend => Err(VmmError::SizeDiffers {
                memory: text_of(memory),
                id: self.id.clone(),
                backend: text_of(backend),
            }),
            _ => Ok(()),
        }
    }
}

/// Returns the size given with `-m`, in bytes. QEMU rounds it up to 8 KiB (`set_memory_options`).
fn memory_size(options: &Options) -> Result<Option<u64>, VmmError> {
    let all = options.properties("m", "size");
    let size = last(&all, "size")
        .map(|text| parse_size(text, 1 << 20))
        .transpose()?;
    Ok(size.map(|bytes| bytes.next_multiple_of(8 << 10)))
}

/// Parses a number with an optional fraction and unit, like QEMU's `qemu_strtosz`. `unit` is the default unit in bytes.
fn parse_size(text: &str, unit: u64) -> Result<u64, VmmError> {
    bytes_of(text, unit).ok_or_else(|| VmmError::Size {
        text: text.to_owned(),
    })
}

fn bytes_of(text: &str, unit: u64) -> Option<u64> {
    /// Units in ascending order, each 1024 times the previous one.
    const UNITS: &str = "BKMGTPE";
    let last = text.chars().next_back()?.to_ascii_uppercase();
    let (digits, unit) = match UNITS.find(last) {
        Some(power) => (&text[..text.len() - 1], 1u64 << (10 * power)),
        None => (text, unit),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |digits: &str| match digits {
        "" => Some(0),
        _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<u64>().ok(),
        _ => None,
    };
    if digits.is_empty() || digits == "." {
        return None;
    }
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u128::from(number(fraction)?).checked_mul(u128::from(unit))? / scale;
    number(whole)?
        .checked_mul(unit)?
        .checked_add(u64::try_from(part).ok()?)
}

/// Formats a size with the largest unit that gives a whole number.
fn text_of(bytes: u64) -> String {
    let units = [("G", 30), ("M", 20), ("K", 10)];
    let fitting = units
        .iter()
        .find(|(_, power)| bytes > 0 && bytes.is_multiple_of(1 << power));
    fitting.map_or_else(
        || bytes.to_string(),
        |(unit, power)| format!("{}{unit}", bytes >> power),
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::os;
    use super::*;

    fn add(args: &str) -> Result<String, String> {
        let args: Vec<&str> = args.split(' ').collect();
        let added = additions(&Options::parse(&os(&args)));
        added
            .map(|args| args.join(" "))
            .map_err(|error| error.to_string())
    }

    fn ours(size: &str) -> Result<String, String> {
        Ok(format!(
            "-object memory-backend-memfd,id=lazystore-mem,size={size},share=on -machine memory-backend=lazystore-mem"
        ))
    }

    #[test]
    fn the_backend_has_the_size_of_any_spelling_of_m() {
        for (args, size) in [
            ("-m 512", "512M"),
            ("--m 512M", "512M"),
            ("-m 2g", "2G"),
            ("-m 1.5G", "1536M"),
            ("-m size=1024", "1G"),
            ("-m 512,slots=2,maxmem=4G", "512M"),
            ("-m slots=2,maxmem=4G,size=768M", "768M"),
            ("-m 512 -m 1G", "1G"),
            ("-m 1000000K", "1000000K"),
            ("-nographic", "128M"),
            ("-append -m -initrd 3", "128M"),
        ] {
            assert_eq!(add(args), ours(size), "{args}");
        }
        for wrong in ["-m many", "-m 1GB", "-m G", "-m -1", "-m 99999999999E"] {
            assert!(
                add(wrong).unwrap_err().contains("not a memory size"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_shared_backend_is_not_changed() {
        for args in [
            "-m 1G -object memory-backend-memfd,id=mem,size=1G -machine q35,memory-backend=mem",
            "-M memory-backend=mem -object memory-backend-file,id=mem,size=1G,mem-path=/x,share=on",
            "-m 1G -object memory-backend-memfd,id=a,size=1G,share=on -numa node,memdev=a",
        ] {
            assert_eq!(add(args), Ok(String::new()), "{args}");
        }
        assert_eq!(
            add("-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on"),
            Ok("-machine memory-backend=mem".to_owned())
        );
    }

    #[test]
    fn memory_of_devices_is_not_changed() {
        let dimm = "-m 1G,slots=1,maxmem=4G -object memory-backend-ram,id=d,size=1G -device pc-dimm,memdev=d";
        assert_eq!(add(dimm), ours("1G"));
    }

    #[test]
    fn memory_that_is_not_shared_is_refused() {
        for args in [
            "-object memory-backend-ram,id=mem,size=1G -machine memory-backend=mem",
            "-object memory-backend-memfd,id=mem,size=1G,share=off -machine memory-backend=mem",
            "-object memory-backend-file,id=mem,size=1G,mem-path=/x -numa node,memdev=mem",
            "-object memory-backend-ram,id=mem,size=1G",
        ] {
            let error = add(args).unwrap_err();
            assert!(
                error.contains("id=mem does not share it: add share=on"),
                "{error}"
            );
        }
        assert!(
            add("-m 1G -mem-path /dev/hugepages")
                .unwrap_err()
                .contains("mem-path=/dev/hugepages")
        );
    }

    #[test]
    fn different_sizes_are_refused() {
        let error =
            add("-m 1G -object memory-backend-memfd,id=mem,size=512M -machine memory-backend=mem");
        let wanted = "-m says 1G, and the memory backend \"mem\" has 512M: make them equal";
        assert_eq!(error, Err(wanted.to_owned()));
    }
}
