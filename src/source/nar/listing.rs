//! Parses listings: the JSON text of a `.ls` file, `{"version": 1, "root": NODE}`. NODE is an object with `type`, and `entries`
//! or `size`, `executable`, `narOffset` or `target` (Nix, `src/libstore/nar-accessor.cc`).
//!
//! Two passes without recursion. The first reads the text into nodes in the order of the text; the second passes them to the
//! builder in the order of a NAR.

use std::ops::Range;

use super::NarTree;
use super::builder::{self, Builder};
use super::error::ListingError;
use super::json::Json;
use crate::closure::shown;

/// The longest accepted text, in bytes: enough for 300,000 files.
pub const LISTING_MAX_BYTES: usize = 32 << 20;

/// The version of the format.
const VERSION: u64 = 1;

/// The character that decoders put in place of invalid UTF-8.
const REPLACEMENT: char = '\u{fffd}';

pub(super) fn parse(json: &[u8], nar_size: u64) -> Result<NarTree, ListingError> {
    if json.len() > LISTING_MAX_BYTES {
        let max = LISTING_MAX_BYTES;
        return Err(ListingError::TooLong { max });
    }
    let raw = RawTree::read(&mut Json::new(json))?;
    let tree = raw.build(nar_size)?;
    if tree.nar_size() != nar_size {
        let (found, expected) = (tree.nar_size(), nar_size);
        return Err(ListingError::Size { found, expected });
    }
    Ok(tree)
}

/// A node in the order of the text.
enum RawNode {
    Regular {
        size_bytes: u64,
        executable: bool,
        offset: Option<u64>,
    },
    /// Its run of the tree's `children`.
    Directory(Range<usize>),
    Symlink(Span),
}

/// A range of the tree's `text`.
type Span = Range<usize>;

/// Nodes in the order of the text. Entries precede their directory, so the root is last.
#[derive(Default)]
struct RawTree {
    nodes: Vec<(Span, RawNode)>,
    /// For each directory a run of indices into `nodes`, unsorted.
    children: Vec<usize>,
    /// Names and symlink targets.
    text: String,
}

impl RawTree {
    fn read(json: &mut Json<'_>) -> Result<Self, ListingError> {
        let (mut tree, mut version) = (Self::default(), None);
        json.begin_object()?;
        while let Some(key) = json.next_key()? {
            match &*key {
                "version" => json.once(&mut version, |json| json.value("a number"))?,
                "root" if tree.nodes.is_empty() => tree.read_root(json)?,
                "root" => return Err(json.fault("duplicate \"root\"")),
                _ => json.skip()?,
            }
        }
        json.end()?;
        match version {
            Some(VERSION) if !tree.nodes.is_empty() => Ok(tree),
            Some(VERSION) => Err(json.fault("there is no \"root\"")),
            Some(found) => Err(ListingError::Version { found }),
            None => Err(json.fault("there is no \"version\"")),
        }
    }

    fn read_root(&mut self, json: &mut Json<'_>) -> Result<(), ListingError> {
        // The entries so far of all open directories, one directory after the other.
        let mut pending = Vec::new();
        json.begin_object()?;
        let mut open = vec![NodeFields::default()];
        while let Some(fields) = open.last_mut() {
            let key = json.next_key()?;
            match (key, &fields.entries) {
                (Some(name), ListedEntries::Open(_)) => {
                    let path_len = builder::path_len(fields.path_len, name.as_bytes())?;
                    let name = self.keep(&name)?;
                    json.begin_object()?;
                    open.push(NodeFields {
                        name,
                        path_len,
                        ..NodeFields::default()
                    });
                }
                (None, ListedEntries::Open(start)) => {
                    let first = self.children.len();
                    self.children.extend(pending.drain(*start..));
                    fields.entries = ListedEntries::Closed(first..self.children.len());
                }
                (Some(key), _) => fields.read(&key, json, pending.len())?,
                (None, _) => {
                    let node = fields.node(self, json)?;
                    pending.push(self.nodes.len());
                    self.nodes.push((fields.name.clone(), node));
                    open.pop();
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, text: &str) -> Result<Span, ListingError> {
        if text.contains(REPLACEMENT) {
            let name = shown(text.as_bytes());
            return Err(ListingError::Lossy { name });
        }
        let start = self.text.len();
        self.text.push_str(text);
        Ok(start..self.text.len())
    }

    /// Builds the tree in the order of a NAR.
    fn build(mut self, nar_size: u64) -> Result<NarTree, ListingError> {
        self.sort();
        let mut builder = Builder::new(nar_size);
        let mut open = Vec::new();
        self.add(self.nodes.len() - 1, &mut builder, &mut open)?;
        while let Some(entries) = open.last_mut() {
            match entries.next() {
                Some(at) => {
                    let index = self.children[at];
                    builder.entry(self.text[self.nodes[index].0.clone()].as_bytes())?;
                    self.add(index, &mut builder, &mut open)?;
                }
                None => {
                    builder.end_directory()?;
                    open.pop();
                }
            }
        }
        Ok(builder.finish())
    }

    fn sort(&mut self) {
        let name = |index: &usize| self.text[self.nodes[*index].0.clone()].as_bytes();
        for (_, node) in &self.nodes {
            if let RawNode::Directory(entries) = node {
                self.children[entries.clone()].sort_unstable_by(|a, b| name(a).cmp(name(b)));
            }
        }
    }

    /// Adds a node to `builder`. Leaves a directory open.
    fn add(
        &self,
        index: usize,
        builder: &mut Builder,
        open: &mut Vec<Range<usize>>,
    ) -> Result<(), ListingError> {
        let (name, node) = &self.nodes[index];
        match node {
            RawNode::Regular {
                size_bytes,
                executable,
                offset,
            } => {
                let expected = builder.regular(*size_bytes, *executable)?;
                if let Some(found) = offset.filter(|found| *found != expected) {
                    let name = shown(self.text[name.clone()].as_bytes());
                    return Err(ListingError::Offset {
                        name,
                        found,
                        expected,
                    });
                }
            }
            RawNode::Directory(entries) => {
                builder.directory()?;
                open.push(entries.clone());
            }
            RawNode::Symlink(target) => builder.symlink(self.text[target.clone()].as_bytes())?,
        }
        Ok(())
    }
}

/// The fields read so far of a node whose object is still open.
#[derive(Default)]
struct NodeFields {
    name: Span,
    path_len: usize,
    kind: Option<String>,
    size_bytes: Option<u64>,
    executable: Option<bool>,
    offset: Option<u64>,
    target: Option<String>,
    entries: ListedEntries,
}

#[derive(Default, Clone, PartialEq, Eq)]
enum ListedEntries {
    #[default]
    Absent,
    /// Index of its first entry among those of all open directories.
    Open(usize),
    /// Their run of the tree's `children`.
    Closed(Range<usize>),
}

impl NodeFields {
    /// Reads the value of `key`; for `entries` only the start.
    fn read(&mut self, key: &str, json: &mut Json<'_>, pending: usize) -> Result<(), ListingError> {
        match key {
            "type" => json.once(&mut self.kind, |json| json.value("a string")),
            "size" => json.once(&mut self.size_bytes, |json| json.value("a number")),
            "executable" => json.once(&mut self.executable, |json| json.value("true or false")),
            "narOffset" => json.once(&mut self.offset, |json| json.value("a number")),
            "target" => json.once(&mut self.target, |json| json.value("a string")),
            "entries" if self.entries == ListedEntries::Absent => {
                self.entries = ListedEntries::Open(pending);
                json.begin_object()
            }
            "entries" => Err(json.fault("duplicate \"entries\"")),
            _ => json.skip(),
        }
    }

    fn node(&mut self, tree: &mut RawTree, json: &Json<'_>) -> Result<RawNode, ListingError> {
        let lacks = |field| json.fault(&format!("a node lacks \"{field}\""));
        match self.kind.as_deref().ok_or_else(|| lacks("type"))? {
            "regular" => Ok(RawNode::Regular {
                size_bytes: self.size_bytes.ok_or_else(|| lacks("size"))?,
                executable: self.executable.unwrap_or(false),
                offset: self.offset,
            }),
            "directory" => match &self.entries {
                ListedEntries::Closed(entries) => Ok(RawNode::Directory(entries.clone())),
                _ => Err(lacks("entries")),
            },
            "symlink" => {
                let target = self.target.as_ref().ok_or_else(|| lacks("target"))?;
                Ok(RawNode::Symlink(tree.keep(target)?))
            }
            other => {
                let kind = shown(other.as_bytes());
                Err(json.fault(&format!("unknown file type \"{kind}\"")))
            }
        }
    }
}
