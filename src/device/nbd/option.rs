//! Parses and checks the options of the handshake.

use super::exports::NAME_LEN_MAX_BYTES;
use super::wire::{BASE_ALLOCATION, info, option};

/// An option that the client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOption {
    /// Start the transmission of this export. There is no error reply.
    ExportName(Vec<u8>),
    /// End the connection.
    Abort,
    /// List the exports.
    List,
    /// Start TLS.
    StartTls,
    /// Describe an export.
    Info(InfoRequest),
    /// Start the transmission of an export.
    Go(InfoRequest),
    /// Use structured replies.
    StructuredReply,
    /// List metadata contexts.
    ListMetaContext(ContextQuery),
    /// Select metadata contexts.
    SetMetaContext(ContextQuery),
    /// An option that this server does not support.
    Unknown,
    /// A supported option with invalid data.
    Malformed,
}

/// The data of `INFO` and `GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// Name of the export; empty for the default export.
    pub name: Vec<u8>,
    /// The client wants the export's canonical name, which differs from the empty name of the default export.
    pub canonical_name: bool,
    /// The client wants a description for people.
    pub description: bool,
    /// The client wants the block sizes.
    pub block_size: bool,
}

/// The data of the options about metadata contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextQuery {
    /// Name of the export.
    pub name: Vec<u8>,
    /// The list of queries is empty.
    pub is_empty: bool,
    /// One of the queries is `base:allocation`.
    pub base_allocation: bool,
    /// One of the queries is only the namespace, `base:`. It lists contexts but does not select any.
    pub base: bool,
}

/// Parses the data of option `number`. Invalid data are [`ClientOption::Malformed`].
pub fn parse(number: u32, data: &[u8]) -> ClientOption {
    let parsed = match number {
        option::EXPORT_NAME => Some(ClientOption::ExportName(data.to_vec())),
        // Data are allowed here, and ignored.
        option::ABORT => Some(ClientOption::Abort),
        option::LIST => data.is_empty().then_some(ClientOption::List),
        option::STARTTLS => data.is_empty().then_some(ClientOption::StartTls),
        option::INFO => info_request(data).map(ClientOption::Info),
        option::GO => info_request(data).map(ClientOption::Go),
        option::STRUCTURED_REPLY => data.is_empty().then_some(ClientOption::StructuredReply),
        option::LIST_META_CONTEXT => context_query(data).map(ClientOption::ListMetaContext),
        option::SET_META_CONTEXT => context_query(data).map(ClientOption::SetMetaContext),
        _ => Some(ClientOption::Unknown),
    };
    parsed.unwrap_or(ClientOption::Malformed)
}

fn info_request(data: &[u8]) -> Option<InfoRequest> {
    let (name, rest) = split_string(data)?;
    let (count, kinds) = rest.split_first_chunk::<2>()?;
    if kinds.len() != 2 * usize::from(u16::from_be_bytes(*count)) {
        return None;
    }
    let (kinds, _) = kinds.as_chunks::<2>();
    let asks = |kind: u16| kinds.contains(&kind.to_be_bytes());
    Some(InfoRequest {
        name: name.to_vec(),
        canonical_name: asks(info::NAME),
        description: asks(info::DESCRIPTION),
        block_size: asks(info::BLOCK_SIZE),
    })
}

fn context_query(data: &[u8]) -> Option<ContextQuery> {
    let (name, rest) = split_string(data)?;
    let (count, mut rest) = split_u32(rest)?;
    let mut query = ContextQuery {
        name: name.to_vec(),
        is_empty: count == 0,
        base_allocation: false,
        base: false,
    };
    for _ in 0..count {
        let (text, later) = split_string(rest)?;
        rest = later;
        query.base_allocation |= text == BASE_ALLOCATION;
        query.base |= text == b"base:";
    }
    rest.is_empty().then_some(query)
}

/// Splits a length-prefixed string off.
fn split_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len_bytes, rest) = split_u32(data)?;
    let len_bytes = usize::try_from(len_bytes).ok()?;
    if len_bytes > NAME_LEN_MAX_BYTES {
        return None;
    }
    rest.split_at_checked(len_bytes)
}

fn split_u32(data: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = data.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn go_has_an_export_name_and_the_requested_information() {
        let data = joined(&[&[0, 0, 0, 2], b"ab", &[0, 2, 0, 3, 0, 9]]);
        let info_request = InfoRequest {
            name: b"ab".to_vec(),
            canonical_name: false,
            description: false,
            block_size: true,
        };
        assert_eq!(parse(option::GO, &data), ClientOption::Go(info_request));
        for cut in 0..data.len() {
            assert_eq!(parse(option::GO, &data[..cut]), ClientOption::Malformed);
        }
        let longer = joined(&[&data, &[0]]);
        assert_eq!(parse(option::INFO, &longer), ClientOption::Malformed);
    }

    #[test]
    fn context_queries_fill_the_data_exactly() {
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
    fn wrong_lengths_are_malformed() {
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
    fn data_in_an_option_without_data_are_malformed() {
        for number in [option::LIST, option::STARTTLS, option::STRUCTURED_REPLY] {
            assert_eq!(parse(number, &[0]), ClientOption::Malformed);
            assert_ne!(parse(number, &[]), ClientOption::Malformed);
        }
        assert_eq!(parse(option::ABORT, &[0]), ClientOption::Abort);
        assert_eq!(parse(4, &[0]), ClientOption::Unknown);
    }
}
