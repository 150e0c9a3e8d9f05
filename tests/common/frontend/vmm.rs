//! Message sequences of VMMs, recorded from real ones. All of them use only the first queue here.

use std::os::fd::AsRawFd;

use super::*;

/// Flag in a header: the reply must say whether the message succeeded (`need_reply`).
const NEED_REPLY: u32 = 1 << 3;

const ADD_MEM_REG: u32 = 37;
const GET_QUEUE_NUM: u32 = 17;

const F_RO: u64 = 1 << 5;
const F_EVENT_IDX: u64 = 1 << 29;

const P_MQ: u64 = 1;
const P_LOG_SHMFD: u64 = 1 << 1;
const P_REPLY_ACK: u64 = 1 << 3;
const P_CONFIG: u64 = 1 << 9;
const P_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

/// A message from a frontend.
#[derive(Debug, Clone, Copy)]
pub enum Message {
    SetOwner,
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    GetConfig { offset: u32, len: u32 },
    SetFeatures(u64),
    SetMemTable,
    AddMemReg,
    SetVringNum,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringKick,
    SetVringEnable(bool),
    GetVringBase,
}

/// The message sequences of a VMM.
#[derive(Debug)]
pub struct Vmm {
    pub name: &'static str,
    /// Whether it requests replies to all messages, once `REPLY_ACK` is negotiated.
    wants_acks: bool,
    /// At its start.
    pub connect: &'static [Message],
    /// When the guest's driver has set up its queue.
    pub activate: &'static [Message],
    /// While the guest runs.
    pub meanwhile: &'static [Message],
    /// When the guest resets the device. Empty if the VMM cannot do that.
    pub reset: &'static [Message],
}

/// cloud-hypervisor and Firecracker set features only after the guest's driver has set up its queue.
const ACTIVATE_WITH_FEATURES: &[Message] = &[
    Message::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES | F_EVENT_IDX | F_RO),
    Message::SetMemTable,
    Message::SetVringNum,
    Message::SetVringAddr,
    Message::SetVringBase,
    Message::SetVringCall,
    Message::SetVringKick,
    Message::SetVringEnable(true),
];

/// Firecracker 1.16.1. It reads the whole configuration before it sets features.
pub const FIRECRACKER: Vmm = Vmm {
    name: "Firecracker",
    wants_acks: false,
    connect: &[
        Message::SetOwner,
        Message::GetFeatures,
        Message::GetProtocolFeatures,
        Message::SetProtocolFeatures(P_CONFIG),
        Message::GetConfig { offset: 0, len: 60 },
    ],
    activate: ACTIVATE_WITH_FEATURES,
    // `PATCH /drives/ID`
    meanwhile: &[Message::GetConfig { offset: 0, len: 60 }],
    reset: &[],
};

/// cloud-hypervisor 53.0. It requests a reply to each message.
pub const CLOUD_HYPERVISOR: Vmm = Vmm {
    name: "cloud-hypervisor",
    wants_acks: true,
    connect: &[
        Message::SetOwner,
        Message::GetFeatures,
        Message::GetProtocolFeatures,
        Message::SetProtocolFeatures(
            P_MQ | P_LOG_SHMFD | P_REPLY_ACK | P_CONFIG | P_CONFIGURE_MEM_SLOTS,
        ),
        Message::GetQueueNum,
        Message::GetConfig { offset: 0, len: 60 },
    ],
    activate: ACTIVATE_WITH_FEATURES,
    // `ch-remote resize --memory SIZE`, `ch-remote pause` and `resume`
    meanwhile: &[
        Message::AddMemReg,
        Message::SetVringEnable(false),
        Message::SetVringEnable(true),
    ],
    reset: &[Message::SetVringEnable(false), Message::GetVringBase],
};

/// crosvm of August 2026. It forwards the guest's reads of the configuration, and a reset does not clear the features.
pub const CROSVM: Vmm = Vmm {
    name: "crosvm",
    wants_acks: false,
    connect: &[
        Message::SetOwner,
        Message::GetFeatures,
        Message::GetProtocolFeatures,
        Message::SetProtocolFeatures(P_MQ | P_REPLY_ACK | P_CONFIG),
        Message::GetQueueNum,
        Message::GetConfig { offset: 4, len: 4 },
        Message::GetConfig { offset: 34, len: 2 },
        Message::GetConfig { offset: 0, len: 4 },
        Message::SetFeatures(F_VERSION_1 | F_PROTOCOL_FEATURES | F_EVENT_IDX | F_RO),
    ],
    activate: &[
        Message::SetMemTable,
        Message::SetVringNum,
        Message::SetVringAddr,
        Message::SetVringBase,
        Message::SetVringCall,
        Message::SetVringKick,
        Message::SetVringEnable(true),
    ],
    meanwhile: &[Message::GetConfig { offset: 0, len: 4 }],
    reset: &[Message::SetVringEnable(false), Message::GetVringBase],
};

/// The reply to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Always a reply, with the requested data.
    Reply,
    /// If the frontend requests one: zero for success.
    Acknowledgement,
    /// No reply: the message precedes the negotiation of `REPLY_ACK`.
    Nothing,
}

impl Message {
    fn answer(self) -> Answer {
        match self {
            Self::GetFeatures
            | Self::GetProtocolFeatures
            | Self::GetQueueNum
            | Self::GetConfig { .. }
            | Self::GetVringBase => Answer::Reply,
            Self::SetOwner | Self::SetProtocolFeatures(_) => Answer::Nothing,
            Self::SetFeatures(_)
            | Self::SetMemTable
            | Self::AddMemReg
            | Self::SetVringNum
            | Self::SetVringAddr
            | Self::SetVringBase
            | Self::SetVringCall
            | Self::SetVringKick
            | Self::SetVringEnable(_) => Answer::Acknowledgement,
        }
    }
}

impl Frontend {
    /// Sends `messages` like `vmm`: waits for each reply that it would wait for. Returns the last reply.
    pub fn say(&self, vmm: &Vmm, messages: &[Message], guest: &Guest) -> Vec<u8> {
        let mut reply = Vec::new();
        for message in messages {
            let is_acknowledged = vmm.wants_acks && message.answer() == Answer::Acknowledgement;
            let flags = if is_acknowledged { NEED_REPLY } else { 0 };
            let (request, payload, fd) = self.encode(*message, guest);
            let fds: Vec<RawFd> = fd.into_iter().collect();
            self.send_flagged(flags, request, &payload, &fds).unwrap();
            if is_acknowledged {
                let success = words64(&[0]);
                assert_eq!(self.receive().unwrap(), success, "{} {message:?}", vmm.name);
            } else if message.answer() == Answer::Reply {
                reply = self.receive().unwrap();
            }
        }
        reply
    }

    fn encode(&self, message: Message, guest: &Guest) -> (u32, Vec<u8>, Option<RawFd>) {
        let state = |value| words32(&[0, value]);
        let first_queue = words64(&[0]);
        let kick = self.kick.as_fd().as_raw_fd();
        let call = self.call.as_fd().as_raw_fd();
        let memory = guest.backing.as_raw_fd();
        match message {
            Message::SetOwner => (SET_OWNER, vec![], None),
            Message::GetFeatures => (GET_FEATURES, vec![], None),
            Message::GetProtocolFeatures => (GET_PROTOCOL_FEATURES, vec![], None),
            Message::SetProtocolFeatures(bits) => (SET_PROTOCOL_FEATURES, words64(&[bits]), None),
            Message::GetQueueNum => (GET_QUEUE_NUM, vec![], None),
            Message::GetConfig { offset, len } => (GET_CONFIG, config_request(offset, len), None),
            Message::SetFeatures(bits) => (SET_FEATURES, words64(&[bits]), None),
            Message::SetMemTable => (SET_MEM_TABLE, self.mem_table(), Some(memory)),
            Message::AddMemReg => (ADD_MEM_REG, self.second_region(), Some(memory)),
            Message::SetVringNum => (SET_VRING_NUM, state(self.layout.queue_size.into()), None),
            Message::SetVringAddr => (SET_VRING_ADDR, self.addresses(), None),
            Message::SetVringBase => (SET_VRING_BASE, state(0), None),
            Message::SetVringCall => (SET_VRING_CALL, first_queue, Some(call)),
            Message::SetVringKick => (SET_VRING_KICK, first_queue, Some(kick)),
            Message::SetVringEnable(on) => (SET_VRING_ENABLE, state(on.into()), None),
            Message::GetVringBase => (GET_VRING_BASE, state(0), None),
        }
    }

    /// The guest's memory mapped a second time, after the first mapping, where VMMs add memory to a running guest.
    fn second_region(&self) -> Vec<u8> {
        let len = self.layout.memory_bytes;
        words64(&[0, len, len, USER_ADDRESS + len, 0])
    }
}
