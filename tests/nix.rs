//! The Nix expressions, with Debian's nix-bin: parsed, evaluated, their start scripts built and executed.
//!
//! nixpkgs and microvm.nix are imitated by tests/nix, which declares the options that the modules touch. With
//! `LAZYSTORE_TEST_NIXPKGS` and `LAZYSTORE_TEST_MICROVM` (directories) the real ones are evaluated instead. What only a
//! NixOS can show is the test in nix/check.nix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "nix/boots.rs"]
mod boots;
mod common;
#[path = "nix/evaluator.rs"]
mod evaluator;
#[path = "nix/expressions.rs"]
mod expressions;
#[path = "nix/host.rs"]
mod host;
#[path = "nix/hypervisors.rs"]
mod hypervisors;
#[path = "nix/machine.rs"]
mod machine;
#[path = "nix/nixos.rs"]
mod nixos;
#[path = "nix/scripts.rs"]
mod scripts;
