//! Compares part of a NAR with the framing that a known tree implies.

use super::{NarTree, Payload, StoredNode, tokens};

/// Upper bound of the framing before the contents of a file: some words, and a name of at most 255 bytes.
const HEAD_MAX_BYTES: u64 = 512;

impl NarTree {
    /// Returns whether `part`, the bytes of a NAR from offset `start` on, is consistent with this tree: the name, executable
    /// bit and size of each file must precede its contents.
    pub fn may_have(&self, start: u64, part: &[u8]) -> bool {
        let end = start.saturating_add(part.len() as u64);
        self.nodes.iter().enumerate().all(|(index, node)| {
            let Payload::Regular { offset, .. } = node.payload else {
                return true;
            };
            if offset <= start || offset >= end.saturating_add(HEAD_MAX_BYTES) {
                return true;
            }
            let head = self.head(node, index == 0);
            let head_start = offset.saturating_sub(head.len() as u64);
            // The intersection of the part and the head.
            let [from, to] = [head_start.max(start), offset.min(end)];
            from >= to
                || part_of(part, from - start, to - from)
                    == part_of(&head, from - head_start, to - from)
        })
    }

    /// Returns the bytes before the contents of a file, back to its entry; for the root, back to the start of the NAR.
    fn head(&self, node: &StoredNode, is_root: bool) -> Vec<u8> {
        let mut words: Vec<&[u8]> = Vec::new();
        match is_root {
            true => words.push(tokens::MAGIC),
            false => {
                words.push(tokens::ENTRY);
                words.extend(tokens::BEFORE_NAME);
                words.extend([self.name(node), tokens::BEFORE_NODE]);
            }
        }
        words.extend(tokens::BEGIN_NODE);
        words.push(tokens::REGULAR);
        let mut size = 0;
        if let Payload::Regular {
            size_bytes,
            executable,
            ..
        } = node.payload
        {
            size = size_bytes;
            if executable {
                words.extend([tokens::EXECUTABLE, tokens::EXECUTABLE_VALUE]);
            }
        }
        words.push(tokens::CONTENTS);
        let mut head = tokens::written(&words);
        head.extend(size.to_le_bytes());
        head
    }
}

fn part_of(bytes: &[u8], start: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}
