//! Further disks for NBD clients, by name.

use std::path::PathBuf;
use std::str::FromStr;

use super::closure_args::{ClosureArgs, Loaded, LocatedClosure};
use super::errors::CliError;
use crate::cache::FetcherProcess;
use crate::closure::Closure;
use crate::device::nbd::{ExportName, ExportNameError, first_duplicate};
use crate::server::{Disks, ServeError};

/// `NAME=CLOSURE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportArg {
    /// The export name that clients request.
    pub name: ExportName,
    /// A store path, a link to one, or the output of closureInfo.
    closure: PathBuf,
}

impl FromStr for ExportArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, closure)) if !closure.is_empty() => Ok(Self {
                name: name
                    .parse()
                    .map_err(|fault: ExportNameError| fault.to_string())?,
                closure: closure.into(),
            }),
            _ => Err("write NAME=CLOSURE, such as web=./result".to_owned()),
        }
    }
}

/// Checks that all disks have different names.
///
/// # Errors
/// Two disks have the same name.
pub fn check_names(main: &ClosureArgs, exports: &[ExportArg]) -> Result<(), CliError> {
    let main = main.is_given().then_some(&ExportName::MAIN);
    let exports = exports.iter().map(|export| &export.name);
    match first_duplicate(main.into_iter().chain(exports)) {
        Some(name) => Err(CliError::SameName { name: name.clone() }),
        None => Ok(()),
    }
}

/// The main closure, if any, and those of `--export`, with their disks.
pub struct LoadedDisks {
    /// The main closure.
    pub main: Option<Loaded>,
    /// The closures of `--export`.
    pub exports: Vec<(ExportName, Loaded)>,
}

impl LoadedDisks {
    /// Loads closures and lays out their disks; those of `exports` with the same options as `main`.
    ///
    /// # Errors
    /// A closure cannot be loaded, or its disk cannot be laid out.
    pub fn load(
        main: &ClosureArgs,
        exports: &[ExportArg],
        shows_progress: bool,
    ) -> Result<Self, CliError> {
        let find = |args: &ClosureArgs| args.find(usize::MAX, shows_progress);
        let main_found = main.is_given().then(|| find(main)).transpose()?;
        let others = exports.iter().map(|export| {
            let found = find(&main.with_closure(&export.closure))?;
            Ok((export.name.clone(), found))
        });
        let others: Vec<_> = others.collect::<Result<_, CliError>>()?;
        let all = main_found
            .iter()
            .chain(others.iter().map(|(_, found)| found));
        let pins = LocatedClosure::hold(&all.collect::<Vec<_>>());
        let lay_out = |found: LocatedClosure| found.lay_out(&pins);
        let others = others.into_iter();
        let others = others.map(|(name, found)| Ok((name, lay_out(found)?)));
        Ok(Self {
            main: main_found.map(lay_out).transpose()?,
            exports: others.collect::<Result<_, CliError>>()?,
        })
    }

    /// Returns all closures.
    pub fn closures(&self) -> Vec<&Closure> {
        let exports = self.exports.iter().map(|(_, loaded)| loaded);
        let all = self.main.iter().chain(exports);
        all.map(|loaded| &loaded.closure).collect()
    }

    /// Returns the disks for the server, and the fetcher process of the main closure.
    ///
    /// # Errors
    /// The disks cannot be served together.
    pub fn into_disks(self) -> Result<(Disks, Option<FetcherProcess>), ServeError> {
        let (main, fetcher) = match self.main {
            Some(main) => (Some(main.image), main.fetcher),
            None => (None, None),
        };
        let exports = self.exports.into_iter();
        let exports = exports.map(|(name, loaded)| (name, loaded.image));
        Ok((Disks::new(main, exports)?, fetcher))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_a_name_and_a_closure() {
        let export: ExportArg = "web=./a=b".parse().unwrap();
        assert_eq!(export.name.as_str(), "web");
        assert_eq!(export.closure, PathBuf::from("./a=b"));
        for (wrong, words) in [
            ("", "NAME=CLOSURE"),
            ("web", "NAME=CLOSURE"),
            ("web=", "NAME=CLOSURE"),
            ("=./a", "empty"),
            ("a\tb=./a", "control character"),
        ] {
            let said = wrong.parse::<ExportArg>().unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }
}
