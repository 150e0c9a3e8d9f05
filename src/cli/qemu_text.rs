//! QEMU options for using the disk.

use std::path::Path;

use crate::server::SocketName;

/// QEMU options for the disk at the vhost-user socket `socket`, with comments, ready to paste.
///
/// The user must replace `SIZE` with the value of `-m`, because the memory backend is the VM's memory.
pub fn qemu_options(socket: &Path) -> String {
    let path = qemu_escape(socket);
    format!(
        "# SIZE is the VM's memory, the same as after -m
-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem
# from QEMU 9.2 on: reconnect-ms=1000 instead of reconnect=1
-chardev socket,id=store,path={path},reconnect=1
# q35, pc:
-device vhost-user-blk-pci,chardev=store
# instead of the last line with -M microvm:
-global virtio-mmio.force-legacy=false -device vhost-user-blk,chardev=store
"
    )
}

/// QEMU options for the disk at the NBD socket `socket`, ready to paste; for the one called `export`, if a client has to
/// choose. The user must replace `DIR` with the directory of `ca-cert.pem` on the VM's host.
pub fn qemu_nbd(socket: &SocketName, is_encrypted: bool, export: Option<&str>) -> String {
    let server = match socket {
        SocketName::Path(path) => format!("type=unix,server.path={}", qemu_escape(path)),
        SocketName::Tcp(at) => format!(
            "type=inet,server.host={},server.port={}",
            at.ip(),
            at.port()
        ),
        SocketName::Descriptor(_) => return String::new(),
    };
    let (object, tls) = match socket {
        SocketName::Tcp(_) if is_encrypted => (
            "-object tls-creds-x509,id=tls,endpoint=client,dir=DIR\n",
            ",tls-creds=tls",
        ),
        _ => ("", ""),
    };
    let export = export.map(|name| format!(",export={}", escape(name)));
    let export = export.unwrap_or_default();
    format!(
        "{object}-blockdev driver=nbd,node-name=store,read-only=on,server.{server}{tls}{export}
-device virtio-blk-pci,drive=store
"
    )
}

/// The QEMU option for the disk image `image`, ready to paste.
pub fn qemu_drive(image: &Path) -> String {
    let path = qemu_escape(image);
    format!("-drive file={path},format=raw,if=virtio,read-only=on\n")
}

/// QEMU options for the file `image` of `len_bytes` as memory of the VM, with comments, ready to paste.
pub fn qemu_pmem(image: &Path, len_bytes: u64) -> String {
    let path = qemu_escape(image);
    format!(
        "# for virtio-pmem, with maxmem= after -m:
-object memory-backend-file,id=store,share=on,readonly=on,mem-path={path},size={len_bytes}
-device virtio-pmem-pci,memdev=store
"
    )
}

/// Escapes a path for a QEMU option, in which a comma is written twice.
pub fn qemu_escape(path: &Path) -> String {
    escape(&path.display().to_string())
}

fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_the_path_are_doubled() {
        let options = qemu_options(Path::new("/run/a,b.sock"));
        assert!(options.contains("-chardev socket,id=store,path=/run/a,,b.sock,reconnect=1\n"));
        assert!(qemu_drive(Path::new("/a,b/c")).starts_with("-drive file=/a,,b/c,format=raw,"));
        assert!(qemu_pmem(Path::new("/a,b"), 2 << 20).contains(",mem-path=/a,,b,size=2097152\n"));
    }

    #[test]
    fn memory_is_shared() {
        assert!(qemu_options(Path::new("/s")).contains("share=on"));
    }
}
