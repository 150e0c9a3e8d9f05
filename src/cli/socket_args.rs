//! Arguments for the access to sockets.

use clap::Args;
use nix::unistd::Group;

use super::errors::CliError;
use crate::server::SocketAccess;

/// Who may connect to the sockets.
#[derive(Debug, Args)]
#[command(next_help_heading = "Socket options")]
pub struct SocketArgs {
    /// Permissions of the sockets, octal; connecting requires write permission [default: 0600; with --socket-group
    /// 0660]
    #[arg(long, value_name = "OCTAL", requires = "sockets", value_parser = parse_mode)]
    socket_mode: Option<u32>,
    /// Group of the sockets, by name or number
    #[arg(long, value_name = "GROUP", requires = "sockets")]
    socket_group: Option<String>,
}

impl SocketArgs {
    /// # Errors
    /// There is no such group.
    pub fn access(&self) -> Result<SocketAccess, CliError> {
        let group = self.socket_group.as_deref().map(group_id).transpose()?;
        let default = match group {
            Some(_) => 0o660,
            None => SocketAccess::default().mode,
        };
        Ok(SocketAccess {
            mode: self.socket_mode.unwrap_or(default),
            group,
        })
    }
}

/// Looks up a group by name, then by number, in the same order as chgrp.
fn group_id(text: &str) -> Result<u32, CliError> {
    let unknown = || CliError::Group {
        group: text.to_owned(),
    };
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => text.parse().map_err(|_| unknown()),
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(mode),
        _ => Err("a mode is octal, such as 0660, and at most 0777".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0660"), Ok(0o660));
        assert_eq!(parse_mode("600"), Ok(0o600));
        for wrong in ["", "+600", "1777", "8", "rw"] {
            assert!(parse_mode(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn groups_have_names_and_numbers() {
        assert_eq!(group_id("root").unwrap(), 0);
        assert_eq!(group_id("12345").unwrap(), 12345);
        let message = group_id("no-such-group").unwrap_err().to_string();
        assert!(message.contains("no-such-group"), "{message}");
    }
}
