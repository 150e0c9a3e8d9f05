//! Actions of a frontend on the ring of a guest: stop, reset, renegotiate and change it.

use vhost_user_backend::VringT;
use virtio_queue::QueueT;

use super::model::{Addresses, Expected, Verdict};
use super::server::Server;
use super::{Guest, Input};

impl Guest<'_> {
    /// GET_VRING_BASE without requests in flight: nothing changes, and the base is the number of completed requests.
    pub(super) fn stop(&mut self) {
        let before = self.layout.bytes();
        let running = self.ring.get_ref().get_queue().ready();
        self.ring.set_queue_ready(false);
        assert!(before == self.layout.bytes(), "a stop wrote to the guest");
        if running && !self.broken {
            assert_eq!(self.ring.queue_next_avail(), self.answered, "base");
        }
    }

    /// Another driver starts, as after a reset: everything is set up again, with any base.
    fn renegotiate(&mut self, input: &mut Input<'_>) {
        let shape = input.byte();
        self.stop();
        self.set_size(1 << (shape % 8));
        self.ring.set_queue_event_idx(shape & 8 != 0);
        if shape & 16 != 0 {
            // Both indexes are zero or any other value.
            let start = if shape & 32 != 0 { input.word16() } else { 0 };
            self.put(self.addresses.avail.wrapping_add(2), &start.to_le_bytes());
            self.put(self.addresses.used.wrapping_add(2), &start.to_le_bytes());
        }
        let base = match shape >> 6 {
            0 => 0,
            1 => self.avail_index(),
            2 => self.answered,
            _ => input.word16(),
        };
        self.ring.set_queue_next_avail(base);
        self.place_ring(self.addresses);
        self.start();
        self.ring.set_enabled(true);
    }

    fn set_size(&mut self, size: u16) {
        let running = self.ring.get_ref().get_queue().ready();
        self.ring.set_queue_size(size);
        // The device allows at most 1024, and virtio only powers of two.
        self.size_is_good = size.is_power_of_two();
        self.size = self.ring.get_ref().get_queue().size();
        if running {
            self.resumed();
        }
    }

    /// A running ring is processed again when it is changed.
    fn set_event_idx(&mut self, enabled: bool) {
        let (running, was) = {
            let state = self.ring.get_ref();
            let queue = state.get_queue();
            (queue.ready(), queue.event_idx_enabled())
        };
        self.ring.set_queue_event_idx(enabled);
        if running && was != enabled {
            self.resumed();
        }
    }

    /// An action that a frontend may take at any time.
    pub(super) fn set_up_again(&mut self, input: &mut Input<'_>) {
        match input.byte() % 10 {
            0 => self.stop(),
            1 => self.start(),
            2 => self.ring.set_enabled(input.byte().is_multiple_of(2)),
            3 => self.set_size(input.word16()),
            4 => self.set_event_idx(input.byte().is_multiple_of(2)),
            5 => self.ring.set_queue_next_avail(input.word16()),
            6 => {
                self.stop();
                self.start();
            }
            8..=9 => self.renegotiate(input),
            _ => {
                let addresses = Addresses {
                    descriptors: self.address(input) & !0xf,
                    avail: self.address(input) & !1,
                    used: self.address(input) & !3,
                };
                self.place_ring(addresses);
            }
        }
    }

    /// Stops or disables the ring while the device serves it. The completed requests are then a prefix of all, the base
    /// equals the used index, and no byte of memory changes afterwards.
    pub(super) fn race(&mut self, input: &mut Input<'_>) {
        let expected = Expected::new(&self.ring, self.broken, self.memory(), &self.stage.image);
        let (turns, kind) = (8 * u32::from(input.byte()), input.byte());
        // Mostly without the other thread, as if it had finished first: waiting for it takes longer than everything else,
        // above all on a busy machine.
        let server = (kind >= 224).then_some(&self.stage.server);
        match server {
            Some(server) => {
                server.begin(&self.ring);
                (0..turns).for_each(|_| std::hint::spin_loop());
            }
            None => self.look(),
        }
        match kind % 4 {
            0 => self.ring.set_enabled(false),
            _ => self.ring.set_queue_ready(false),
        }
        let base = self.ring.queue_next_avail();
        let at_rest = self.layout.bytes();
        server.into_iter().for_each(Server::finish);
        assert!(at_rest == self.layout.bytes(), "written to after a stop");
        self.layout.check_outside(&at_rest);
        if expected.verdict() == Verdict::Exactly && !expected.is_flawed() {
            assert_eq!(self.used_index(), Some(base), "base and used index");
            expected.check_prefix(self.memory());
        }
        self.ring.set_enabled(true);
        self.start();
    }
}
