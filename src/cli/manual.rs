//! `lazystore completions` and `lazystore man`, generated from the definitions of the command line.

mod roff;
mod sections;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::errors::CliError;
use super::help;
use sections::Sections;

/// Arguments of `lazystore completions`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `lazystore man`.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub struct ManArgs {
    /// Subcommand whose page to print [default: the page of lazystore]
    subcommand: Option<String>,
    /// Write all pages to files in DIR instead
    #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
    dir: Option<PathBuf>,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  lazystore completions bash >~/.local/share/bash-completion/completions/lazystore
  lazystore completions zsh >~/.zfunc/_lazystore     # with ~/.zfunc in fpath
  lazystore completions fish >~/.config/fish/completions/lazystore.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  lazystore man run | man -l -
  lazystore man --dir ~/.local/share/man/man1";

/// Prints the completion script.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut super::Cli::command(),
        "lazystore",
        &mut script,
    );
    io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a page, or writes all of them.
pub fn man(args: &ManArgs) -> Result<ExitCode, CliError> {
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    if let Some(dir) = &args.dir {
        write_all(&command, dir).map_err(|source| CliError::Pages {
            dir: dir.to_owned(),
            source,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let found = args.subcommand.as_deref();
    let found = found.map(|name| page_of(&command, name)).transpose()?;
    let text = page(found.unwrap_or(&command))?;
    io::stdout().lock().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// One page in man(7) format.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone()).date("").manual("lazystore");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let (examples, notes) = help::parts(command);
    roff::paragraphs(&mut text, &notes);
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let is_main = command.has_subcommands();
    let sections = Sections::of((!is_main).then(|| command.get_name()));
    roff::entries(&mut text, "EXIT STATUS", sections.exit_status);
    roff::entries(&mut text, "ENVIRONMENT", sections.environment);
    roff::entries(&mut text, "FILES", sections.files);
    roff::preformatted(&mut text, "EXAMPLES", &examples);
    let main = (!is_main).then_some("lazystore(1)");
    let others = sections.see_also.iter().copied();
    roff::list(&mut text, "SEE ALSO", main.into_iter().chain(others));
    Ok(text)
}

fn page_of<'c>(command: &'c Command, name: &str) -> Result<&'c Command, CliError> {
    command
        .find_subcommand(name)
        .ok_or_else(|| CliError::NoSuchPage {
            name: name.to_owned(),
        })
}

fn write_all(command: &Command, dir: &Path) -> io::Result<()> {
    fs::write(dir.join("lazystore.1"), page(command)?)?;
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
        let name = format!("lazystore-{}.1", subcommand.get_name());
        fs::write(dir.join(name), page(subcommand)?)?;
    }
    Ok(())
}
