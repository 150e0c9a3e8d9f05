//! The message sequences of VMMs that the tests cannot install. The VMMs themselves were run manually
//! (`docs/examples.md`).

use lazystore::image::Image;

use crate::common::frontend::vmm::{CLOUD_HYPERVISOR, CROSVM, FIRECRACKER, Vmm};
use crate::common::frontend::{Frontend, Guest};
use crate::common::process::wait_for;
use crate::common::server::{Server, tree};

use super::{READ, bytes};

/// A guest starts its driver and reads. The device interrupts it.
fn start_and_read(vmm: &Vmm, frontend: &Frontend, guest: &mut Guest, image: &Image) {
    guest.reset_queue();
    frontend.say(vmm, vmm.activate, guest);
    guest.submit(0, READ, 2, 4096);
    frontend.kick();
    guest.wait();
    assert_eq!(guest.status(0), 0, "{}", vmm.name);
    assert!(
        guest.data(0, 4096) == bytes(image, 1024, 4096),
        "{}",
        vmm.name
    );
    wait_for("an interrupt", || frontend.call.read().ok());
}

/// The guest reads again after what the VMM does while it runs.
fn read_on(vmm: &Vmm, frontend: &Frontend, guest: &mut Guest, image: &Image) {
    frontend.say(vmm, vmm.meanwhile, guest);
    guest.submit(1, READ, 8, 512);
    frontend.kick();
    guest.wait();
    assert_eq!(guest.status(1), 0, "{}", vmm.name);
    assert_eq!(guest.data(1, 512), bytes(image, 4096, 512), "{}", vmm.name);
}

fn drive(vmm: &Vmm, frontend: &Frontend, image: &Image) {
    let mut guest = Guest::new();
    let config = frontend.say(vmm, vmm.connect, &guest);
    let capacity = (image.len_bytes() / 512).to_le_bytes();
    assert_eq!(config[12..16], capacity[..4], "{}", vmm.name);
    start_and_read(vmm, frontend, &mut guest, image);
    read_on(vmm, frontend, &mut guest, image);
    if !vmm.reset.is_empty() {
        let base = frontend.say(vmm, vmm.reset, &guest);
        assert_eq!(base[4..], 2u32.to_le_bytes(), "{}", vmm.name);
        start_and_read(vmm, frontend, &mut guest, image);
    }
}

#[test]
fn message_sequences_of_other_vmms_are_accepted() {
    let tree = tree();
    let image = crate::common::tree_image(tree.path());
    let server = Server::start(tree.path(), &[]);
    for vmm in [&FIRECRACKER, &CLOUD_HYPERVISOR, &CROSVM] {
        drive(vmm, &Frontend::connect(&server.socket), &image);
    }
}
