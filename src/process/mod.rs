//! Child processes, for the server and for `lazystore run`.
//!
//! | module | what it does |
//! |---|---|
//! | `role` | forks a process that runs one function and exits: it never returns into its caller |
//! | `child` | how a child ended, signals to it, its end within a bounded time |
//! | `signals` | the signals that a parent waits for |
//! | `shared` | memory that a process shares with its children |
//!
//! A process that forks has one thread. Children die with their parent.

mod child;
mod error;
mod role;
mod shared;
mod signals;

pub use child::{Child, End, stop_all};
pub use error::ProcessError;
pub use role::{exit_now, spawn};
pub use shared::Shared;
pub use signals::{ENDING, EndRequest, Received, Signals, Waited};
