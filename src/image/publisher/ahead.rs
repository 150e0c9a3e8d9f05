//! Plans paths before a guest reads them.
//!
//! A guest that looks into every path (`find`, a glob, `ls -l`) takes them in the order of the closure. Without this, it waits
//! for the walk of each path that it looks into first.

use super::{PublishState, Publisher};
use crate::erofs::layout::plan::Plan;
use crate::image::Image;
use crate::image::plans::Need;
use crate::image::published::Wish;
use crate::source::IoMode;

/// This many consecutive paths are read by a scan, and rarely by anything else.
const RUN_MIN: u32 = 8;

/// Number of paths after the last one read.
const AHEAD_MAX: u32 = 32;

/// Number of metadata blocks to plan before the requests are checked again.
const BLOCKS_AT_ONCE: u32 = 64;

/// How far a path has been planned.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanPosition {
    region: u32,
    blocks: u32,
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// A guest has read from it.
    Read,
    /// No guest has, and nothing is left to do.
    Planned,
    /// No guest has, and it is not planned.
    Unplanned,
}

impl Publisher {
    /// Plans a part of the next path of a scan. Returns false if there is none.
    pub(super) fn plan_ahead(&mut self, image: &Image) -> bool {
        let Some(region) = self.next_of_scan() else {
            return false;
        };
        let place = self.ahead.filter(|place| place.region == region);
        let blocks = place.map_or(0, |place| place.blocks);
        let blocks = blocks.saturating_add(BLOCKS_AT_ONCE);
        let planned = image.is_of_host(region).then(|| {
            let need = Need::Meta(blocks);
            image.with_plan(IoMode::Blocking, region, need, Plan::meta_blocks)
        });
        self.ahead = match planned {
            // An incomplete plan covers no block after its last one.
            Some(Ok(known)) if known > blocks => Some(PlanPosition { region, blocks }),
            _ => {
                let state = self.publish(image, region);
                self.states[region as usize] = state;
                None
            }
        };
        true
    }

    fn next_of_scan(&self) -> Option<u32> {
        if !self.has_room_for_more() {
            return None;
        }
        let seen = self.regions().map(|(region, state)| {
            let is_read = self.requests.has(region, Wish::Plan);
            (region, seen(is_read, state))
        });
        next_of_scan(seen)
    }
}

fn seen(is_read: bool, state: &PublishState) -> Seen {
    match (is_read, state) {
        (true, _) => Seen::Read,
        (false, PublishState::Begun) => Seen::Unplanned,
        (false, PublishState::Failed { .. } | PublishState::Published(_) | PublishState::Done) => {
            Seen::Planned
        }
    }
}

/// Returns the first path to plan: after at least [`RUN_MIN`] paths that were read one after the other, at most as far as that run
/// is long. So what is planned in vain is never more than what guests have read.
fn next_of_scan(paths: impl IntoIterator<Item = (u32, Seen)>) -> Option<u32> {
    let (mut run, mut ahead) = (0_u32, 0);
    for (region, seen) in paths {
        match seen {
            Seen::Read => {
                run += 1;
                if run >= RUN_MIN {
                    ahead = run.min(AHEAD_MAX);
                }
            }
            _ if ahead == 0 => run = 0,
            Seen::Planned => ahead -= 1,
            Seen::Unplanned => return Some(region),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{AHEAD_MAX, Seen, next_of_scan};

    /// `r`: read, `p`: planned, `.`: neither.
    fn next(paths: &str) -> Option<u32> {
        let seen = paths.bytes().map(|byte| match byte {
            b'r' => Seen::Read,
            b'p' => Seen::Planned,
            _ => Seen::Unplanned,
        });
        next_of_scan((0..).zip(seen))
    }

    #[test]
    fn a_run_of_read_paths_is_a_scan() {
        assert_eq!(next(""), None);
        assert_eq!(next("rrr......."), None);
        assert_eq!(next("rrrrrrr.rrrrrrr.r.r.r.r.r.r.r.r.r"), None);
        assert_eq!(next("rrrrrrrr."), Some(8));
        assert_eq!(next("..rrrrrrrr."), Some(10));
        assert_eq!(next("rrrrrrrr"), None);
    }

    #[test]
    fn a_scan_may_skip_paths_that_were_planned_ahead() {
        assert_eq!(next("rrrrrrrrppprp."), Some(13));
    }

    #[test]
    fn no_more_is_planned_than_was_read() {
        assert_eq!(next("rrrrrrrrppppppp."), Some(15));
        assert_eq!(next("rrrrrrrrpppppppp."), None);
        let long = |planned: usize| "r".repeat(100) + &"p".repeat(planned) + ".";
        let max = AHEAD_MAX as usize;
        assert_eq!(next(&long(max - 1)), Some(100 + AHEAD_MAX - 1));
        assert_eq!(next(&long(max)), None);
    }
}
