//! `lazystore completions` and `lazystore man`: from the same definitions as the command line itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::errors::CliError;

/// Arguments of `lazystore completions`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
bash:  lazystore completions bash > ~/.local/share/bash-completion/completions/lazystore
zsh:   lazystore completions zsh > ~/.zfunc/_lazystore        (with ~/.zfunc in fpath)
fish:  lazystore completions fish > ~/.config/fish/completions/lazystore.fish")]
pub struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

/// Arguments of `lazystore man`.
#[derive(Debug, Args)]
#[command(after_long_help = "To read one: lazystore man run | man -l -")]
pub struct ManArgs {
    /// The page of this subcommand; without it, of lazystore
    subcommand: Option<String>,
    /// Write all pages as files into DIR instead
    #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
    dir: Option<PathBuf>,
}

/// Writes the completion script.
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

/// Writes a page, or all.
pub fn man(args: &ManArgs) -> Result<ExitCode, CliError> {
    let mut command = with_examples(super::Cli::command());
    command.build();
    if let Some(dir) = &args.dir {
        write_all(command, dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = match &args.subcommand {
        None => command,
        Some(name) => page_of(&command, name)?,
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    io::stdout().lock().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Pages show what stands behind the options, not the examples before them.
fn with_examples(command: Command) -> Command {
    let before = command.get_before_long_help().or(command.get_before_help());
    let parts = [before, command.get_after_long_help()];
    let text: Vec<_> = parts
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    let command = command.mut_subcommands(with_examples);
    match text.is_empty() {
        true => command,
        false => command.after_long_help(text.join("\n\n")),
    }
}

fn page_of(command: &Command, name: &str) -> Result<Command, CliError> {
    let found = command.find_subcommand(name).cloned();
    found.ok_or_else(|| CliError::NoSuchPage {
        name: name.to_owned(),
    })
}

fn write_all(command: Command, dir: &Path) -> Result<(), CliError> {
    clap_mangen::generate_to(command, dir).map_err(|source| CliError::Pages {
        dir: dir.to_owned(),
        source,
    })
}
