// Copyright (c) 2026 The dfsd authors
//
// Permission to use, copy, modify, and distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
// OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

//! The FUSE device of OpenBSD 8.0's kernel, played at the other end of a
//! SEQPACKET socket pair: what it says, how it lays it out, and how strictly it
//! judges answers.  It cannot refuse the write of an answer that it does not
//! like; it remembers why, and the test fails.
//!
//! A request is a header and what belongs to its opcode, native endian:
//!
//! | offset | size | field                                                 |
//! | ------ | ---- | ----------------------------------------------------- |
//! |      0 |    8 | length, opcode                                        |
//! |      8 |   16 | number of the request, random; inode                  |
//! |     24 |   16 | uid, gid, thread, 0                                   |
//!
//! An answer is a header, and if its error is 0 a fixed part and data; data
//! only for READLINK, READ and READDIR:
//!
//! | offset | size | field                                                 |
//! | ------ | ---- | ----------------------------------------------------- |
//! |      0 |    8 | length, negated errno                                 |
//! |      8 |    8 | number of the request, 0 for what is not asked for    |

#![forbid(unsafe_code)]

use common::fs::IO_MAX;
use common::sys::socket::set_bufs;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, socketpair, sockopt, AddressFamily, SockFlag, SockType};
use nix::Result;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Longer than any request may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const INIT: u32 = 26;

/// The opcodes that this kernel sends, but for INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Flush = 25,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Destroy = 38,
    Fallocate = 43,
    Lseek = 46,
}

impl Op {
    /// The fixed part of a good answer.
    fn fixed(self) -> usize {
        match self {
            Op::Lookup | Op::Symlink | Op::Mknod | Op::Mkdir | Op::Link => 128,
            Op::Getattr | Op::Setattr => 104,
            Op::Open | Op::Opendir => 16,
            Op::Write | Op::Lseek => 8,
            Op::Statfs => 80,
            _ => 0,
        }
    }

    /// Whether data may follow it.
    fn has_data(self) -> bool {
        matches!(self, Op::Readlink | Op::Read | Op::Readdir)
    }
}

/// Somebody who waits for an answer.
struct Caller {
    /// None for what no kernel would send: any answer will do.
    op: Option<Op>,
    /// Most data to come.
    size: usize,
    answer: Sender<Result<Vec<u8>>>,
}

#[derive(Default)]
struct State {
    callers: HashMap<u64, Caller>,
    /// fused has closed its end.
    dead: bool,
    /// What was wrong with answers.
    rejected: Vec<String>,
    /// Messages that were not asked for, which it ignores.
    notified: u64,
    /// How often each opcode was sent.
    sent: HashMap<u32, u64>,
    random: u64,
}

pub struct Device {
    /// None once it is unmounted.
    socket: Mutex<Option<Arc<OwnedFd>>>,
    state: Mutex<State>,
    /// Most bytes in a READ or WRITE.
    pub io_max: usize,
}

pub fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A request as it goes over the device.
pub fn message(op: u32, unique: u64, node: u64, uid: u32, body: &[u8]) -> Vec<u8> {
    let mut message = u32s(&[(IN_HEADER + body.len()) as u32, op]);
    message.extend(u64s(&[unique, node]));
    message.extend(u32s(&[uid, uid, 100_001, 0]));
    message.extend(body);
    message
}

impl Device {
    /// A device, mounted: INIT is queued.  And fused's end of it.
    pub fn new() -> (Arc<Device>, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        for end in [&ours, &theirs] {
            set_bufs(end.as_fd(), 4 * IO_MAX).unwrap();
        }
        // Without privileges the buffers are smaller, and one message must fit.
        let room = getsockopt(&ours, sockopt::SndBuf).unwrap();
        let ours = Arc::new(ours);
        let device = Arc::new(Device {
            socket: Mutex::new(Some(ours.clone())),
            state: Mutex::new(State {
                random: 0x9e37_79b9_7f4a_7c15,
                ..State::default()
            }),
            io_max: IO_MAX.min(room / 4),
        });
        let reader = device.clone();
        thread::spawn(move || reader.read_answers(&ours));
        (device, theirs)
    }

    /// What mount(2) queues; the answer must be the short one of old.
    pub fn init(self: &Arc<Self>) -> Receiver<Result<Vec<u8>>> {
        let (unique, answer) = self.expect(None, usize::MAX);
        self.send(&message(INIT, unique, 0, 0, &u32s(&[7, 19, 0, 0])));
        answer
    }

    pub fn check_init(answer: Receiver<Result<Vec<u8>>>) {
        let init = answer.recv_timeout(PATIENCE).unwrap().unwrap();
        assert_eq!(init.len(), 24);
        assert!(u32_at(&init, 0) == 7 && u32_at(&init, 4) >= 9);
        assert_eq!(u32_at(&init, 12), 0, "a capability that was not offered");
        assert_eq!(u32_at(&init, 20), IO_MAX as u32, "max_write");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn expect(&self, op: Option<Op>, size: usize) -> (u64, Receiver<Result<Vec<u8>>>) {
        let (answer, receiver) = channel();
        let mut state = self.state();
        // xorshift; never 0.
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        let unique = state.random;
        match state.dead {
            true => answer.send(Err(Errno::ENXIO)).unwrap(),
            false => {
                state.callers.insert(unique, Caller { op, size, answer });
            }
        }
        (unique, receiver)
    }

    /// Whatever it is.
    pub fn send(&self, message: &[u8]) {
        if message.len() >= 8 {
            let op = u32_at(message, 4);
            *self.state().sent.entry(op).or_default() += 1;
        }
        let socket = self.socket.lock().unwrap().clone();
        if let Some(socket) = socket {
            // It fails when fused is gone, which the reader tells everybody.
            let _ = nix::unistd::write(&socket, message);
        }
    }

    /// A request, and its answer behind the header.  The caller sleeps without
    /// a limit; here only until it is a failure.
    pub fn call(&self, op: Op, node: u64, uid: u32, body: &[u8]) -> Result<Vec<u8>> {
        self.call_sized(op, node, uid, body, 0)
    }

    /// With up to `size` bytes of data in the answer.
    pub fn call_sized(
        &self,
        op: Op,
        node: u64,
        uid: u32,
        body: &[u8],
        size: usize,
    ) -> Result<Vec<u8>> {
        let (unique, answer) = self.expect(Some(op), size);
        self.send(&message(op as u32, unique, node, uid, body));
        answer
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("{op:?} is not answered"))
    }

    /// What no kernel would send; `message` is given the number to use.
    pub fn odd(&self, message: impl FnOnce(u64) -> Vec<u8>) -> Result<Vec<u8>> {
        let (unique, answer) = self.expect(None, usize::MAX);
        self.send(&message(unique));
        answer.recv_timeout(PATIENCE).expect("it is not answered")
    }

    pub fn forget(&self, node: u64, nlookup: u64) {
        self.send(&message(Op::Forget as u32, 0, node, 0, &u64s(&[nlookup])));
    }

    pub fn sent(&self, op: Op) -> u64 {
        self.state().sent.get(&(op as u32)).copied().unwrap_or(0)
    }

    pub fn notified(&self) -> u64 {
        self.state().notified
    }

    /// What is wrong with the answers so far.
    pub fn rejected(&self) -> Vec<String> {
        self.state().rejected.clone()
    }

    /// DESTROY, and nothing more is to be read.
    pub fn unmount(&self) -> Result<()> {
        self.call(Op::Destroy, 0, 0, &[])?;
        self.hang_up();
        Ok(())
    }

    pub fn hang_up(&self) {
        let socket = self.socket.lock().unwrap().take();
        if let Some(socket) = socket {
            let _ = nix::sys::socket::shutdown(
                std::os::fd::AsRawFd::as_raw_fd(&*socket),
                nix::sys::socket::Shutdown::Both,
            );
        }
    }

    fn read_answers(&self, socket: &OwnedFd) {
        let mut buf = vec![0; 2 * IO_MAX];
        loop {
            match nix::unistd::read(socket, &mut buf) {
                Ok(0) | Err(_) => break,
                Ok(n) => self.answered(&buf[..n]),
            }
        }
        let mut state = self.state();
        state.dead = true;
        for (_, caller) in state.callers.drain() {
            let _ = caller.answer.send(Err(Errno::ENXIO));
        }
    }

    fn answered(&self, message: &[u8]) {
        let mut state = self.state();
        if message.len() < OUT_HEADER {
            return state.rejected.push(format!("{} bytes", message.len()));
        }
        let (len, error) = (u32_at(message, 0) as usize, u32_at(message, 4) as i32);
        let unique = u64_at(message, 8);
        if unique == 0 {
            state.notified += 1;
            return;
        }
        let Some(caller) = state.callers.remove(&unique) else {
            return state.rejected.push(format!("nobody asked for {unique:x}"));
        };
        let body = &message[OUT_HEADER..];
        if let Some(wrong) = wrong(&caller, len, message.len(), error) {
            state.rejected.push(wrong);
            let _ = caller.answer.send(Err(Errno::EIO));
        } else if error != 0 {
            let _ = caller.answer.send(Err(Errno::from_raw(-error)));
        } else {
            let _ = caller.answer.send(Ok(body.to_vec()));
        }
    }
}

/// Why the kernel would answer EINVAL to the write of this answer, or would
/// never ask again.
fn wrong(caller: &Caller, len: usize, got: usize, error: i32) -> Option<String> {
    let op = caller.op?;
    let data = len.checked_sub(OUT_HEADER + op.fixed());
    let fits = match (error, data) {
        (0, Some(0)) => true,
        (0, Some(data)) => op.has_data() && data <= caller.size,
        (0, None) => false,
        _ => len == OUT_HEADER && (-4095..0).contains(&error),
    };
    let what = format!("{op:?}: {len} bytes, {got} written, error {error}");
    if !fits || len != got {
        return Some(what);
    }
    (error == -(Errno::ENOSYS as i32)).then_some(what)
}
