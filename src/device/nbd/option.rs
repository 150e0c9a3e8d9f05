//! An option is a value: bytes of the client, parsed and checked.

use super::exports::NAME_LEN_MAX_BYTES;
use super::wire::{BASE_ALLOCATION, info, option};

/// What a client asks for before it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOption {
    /// Read this disk; there is no way to say no.
    ExportName(Vec<u8>),
    /// The end.
    Abort,
    /// Which disks are there?
    List,
    /// Encrypt.
    StartTls,
    /// What is there to say of this disk?
    Info(Wanted),
    /// Read this disk.
    Go(Wanted),
    /// Answer requests in chunks.
    StructuredReply,
    /// Which contexts are there?
    ListMetaContext(ContextQuery),
    /// Tell of these contexts.
    SetMetaContext(ContextQuery),
    /// Nothing that is known here.
    Unknown,
    /// A known option whose data make no sense.
    Malformed,
}

/// Of `INFO` and `GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Name of the disk.
    pub name: Vec<u8>,
    /// Its proper name is asked for, which differs for the disk without a name.
    pub canonical_name: bool,
    /// A line for people is asked for.
    pub description: bool,
    /// Block sizes are asked for.
    pub block_size: bool,
}

/// Of the options about metadata contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextQuery {
    /// Name of the disk.
    pub name: Vec<u8>,
    /// There is no query at all.
    pub is_empty: bool,
    /// A query is `base:allocation`.
    pub base_allocation: bool,
    /// A query is the namespace `base:` alone, which lists but does not select.
    pub base: bool,
}

/// Reads the data of option `number`. Never fails: what makes no sense is a value, too.
pub fn parse(number: u32, data: &[u8]) -> ClientOption {
    let parsed = match number {
        option::EXPORT_NAME => Some(ClientOption::ExportName(data.to_vec())),
        // Clients may send more when they leave; it is ignored.
        option::ABORT => Some(ClientOption::Abort),
        option::LIST => data.is_empty().then_some(ClientOption::List),
        option::STARTTLS => data.is_empty().then_some(ClientOption::StartTls),
        option::INFO => wanted(data).map(ClientOption::Info),
        option::GO => wanted(data).map(ClientOption::Go),
        option::STRUCTURED_REPLY => data.is_empty().then_some(ClientOption::StructuredReply),
        option::LIST_META_CONTEXT => query(data).map(ClientOption::ListMetaContext),
        option::SET_META_CONTEXT => query(data).map(ClientOption::SetMetaContext),
        _ => Some(ClientOption::Unknown),
    };
    parsed.unwrap_or(ClientOption::Malformed)
}

fn wanted(data: &[u8]) -> Option<Wanted> {
    let (name, rest) = string(data)?;
    let (count, kinds) = rest.split_first_chunk::<2>()?;
    if kinds.len() != 2 * usize::from(u16::from_be_bytes(*count)) {
        return None;
    }
    let (kinds, _) = kinds.as_chunks::<2>();
    let asks = |kind: u16| kinds.contains(&kind.to_be_bytes());
    Some(Wanted {
        name: name.to_vec(),
        canonical_name: asks(info::NAME),
        description: asks(info::DESCRIPTION),
        block_size: asks(info::BLOCK_SIZE),
    })
}

fn query(data: &[u8]) -> Option<ContextQuery> {
    let (name, rest) = string(data)?;
    let (count, mut rest) = word(rest)?;
    let mut query = ContextQuery {
        name: name.to_vec(),
        is_empty: count == 0,
        base_allocation: false,
        base: false,
    };
    for _ in 0..count {
        let (text, later) = string(rest)?;
        rest = later;
        query.base_allocation |= text == BASE_ALLOCATION;
        query.base |= text == b"base:";
    }
    rest.is_empty().then_some(query)
}

/// A string with its length before it.
fn string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len_bytes, rest) = word(data)?;
    let len_bytes = usize::try_from(len_bytes).ok()?;
    if len_bytes > NAME_LEN_MAX_BYTES {
        return None;
    }
    rest.split_at_checked(len_bytes)
}

fn word(data: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = data.split_first_chunk()?;
    Some((u32::from_be_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn go_names_a_disk_and_what_to_tell_of_it() {
        let data = joined(&[&[0, 0, 0, 2], b"ab", &[0, 2, 0, 3, 0, 9]]);
        let wanted = Wanted {
            name: b"ab".to_vec(),
            canonical_name: false,
            description: false,
            block_size: true,
        };
        assert_eq!(parse(option::GO, &data), ClientOption::Go(wanted));
        for cut in 0..data.len() {
            assert_eq!(parse(option::GO, &data[..cut]), ClientOption::Malformed);
        }
        let longer = joined(&[&data, &[0]]);
        assert_eq!(parse(option::INFO, &longer), ClientOption::Malformed);
    }

    #[test]
    fn queries_are_read_to_the_last_byte() {
        let data = joined(&[
            &[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 5],
            b"base:",
            &[0, 0, 0, 15],
            BASE_ALLOCATION,
            &[0, 0, 0, 1],
            b"x",
        ]);
        let query = ContextQuery {
            name: Vec::new(),
            is_empty: false,
            base_allocation: true,
            base: true,
        };
        let parsed = parse(option::SET_META_CONTEXT, &data);
        assert_eq!(parsed, ClientOption::SetMetaContext(query));
        for cut in 0..data.len() {
            let parsed = parse(option::LIST_META_CONTEXT, &data[..cut]);
            assert_eq!(parsed, ClientOption::Malformed);
        }
        let longer = joined(&[&data, &[0]]);
        let parsed = parse(option::LIST_META_CONTEXT, &longer);
        assert_eq!(parsed, ClientOption::Malformed);
    }

    #[test]
    fn lengths_that_lie_are_malformed() {
        let long = [0xff; 4];
        for number in [
            option::INFO,
            option::GO,
            option::LIST_META_CONTEXT,
            option::SET_META_CONTEXT,
        ] {
            assert_eq!(parse(number, &long), ClientOption::Malformed);
            let many = joined(&[&[0, 0, 0, 0], &long]);
            assert_eq!(parse(number, &many), ClientOption::Malformed);
        }
        let name = [0; NAME_LEN_MAX_BYTES + 1];
        let data = joined(&[&[0, 0, 0x10, 1], &name, &[0, 0]]);
        assert_eq!(parse(option::GO, &data), ClientOption::Malformed);
        let data = joined(&[&[0, 0, 0x10, 0], &name[1..], &[0, 0]]);
        assert!(matches!(parse(option::GO, &data), ClientOption::Go(_)));
    }

    #[test]
    fn options_without_data_have_none() {
        for number in [option::LIST, option::STARTTLS, option::STRUCTURED_REPLY] {
            assert_eq!(parse(number, &[0]), ClientOption::Malformed);
            assert_ne!(parse(number, &[]), ClientOption::Malformed);
        }
        assert_eq!(parse(option::ABORT, &[0]), ClientOption::Abort);
        assert_eq!(parse(4, &[0]), ClientOption::Unknown);
    }
}
