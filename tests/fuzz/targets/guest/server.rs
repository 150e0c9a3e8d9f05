//! A thread that serves a ring while the fuzzer does something else to it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use lazystore::device::vhost_blk::blk::BlkDevice;
use lazystore::device::vhost_blk::ring::Ring;
use vhost_user_backend::VhostUserBackend;
use vmm_sys_util::epoll::EventSet;

pub struct Server {
    rings: SyncSender<Ring>,
    served: Receiver<()>,
}

impl Server {
    pub fn new(device: Arc<BlkDevice>) -> Self {
        let (rings, next) = sync_channel::<Ring>(1);
        let (done, served) = sync_channel(1);
        std::thread::spawn(move || {
            for ring in next {
                device.handle_event(0, EventSet::IN, &[ring], 0).unwrap();
                done.send(()).unwrap();
            }
        });
        Self { rings, served }
    }

    /// Has the thread process a ring.
    pub fn begin(&self, ring: &Ring) {
        self.rings.send(ring.clone()).unwrap();
    }

    /// Waits until it has finished.
    pub fn finish(&self) {
        self.served.recv().unwrap();
    }
}
