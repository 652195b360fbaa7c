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

//! imsg: messages between our processes, with libutil's contract.  Every
//! process runs it, one channel end per unix stream socket; it never panics on
//! what it receives and never blocks unless asked to by name (`*_blocking`).
//!
//! A frame, all integers little-endian:
//!
//! | offset | size | field                                                 |
//! | ------ | ---- | ----------------------------------------------------- |
//! |      0 |    4 | type: 0 version, else the channel direction           |
//! |      4 |    4 | length of the frame with this header; top bit: a      |
//! |        |      | descriptor travels with this frame                    |
//! |      8 |    4 | peerid: request, mount or client number               |
//! |     12 |    4 | pid of the sender (a hint; nothing may depend on it)  |
//! |     16 |    . | the message in postcard                               |
//! |      . |    . | bulk bytes, exactly as many as the message announces  |
//!
//! The first frame in each direction has type 0 and four bytes of payload, the
//! sender's IMSG_VERSION.  Every later frame has the type of its direction.
//!
//! Descriptors.  A descriptor leaves with the first byte of its own frame, and
//! the kernel ends a receive after data that carried one.  So the descriptor
//! that came with the bytes [a, b) belongs to the first marked frame whose
//! header begins in [a, b), and can never attach itself to a neighbour.  One
//! that no frame claims is closed, and so are all but the first.  A marked
//! frame whose descriptor the kernel could not deliver (no free slot here, too
//! many in flight there) arrives with `fd_lost`: the receiver decides.

#![forbid(unsafe_code)]

use crate::sys::poll::{wait, PollFlags};
use crate::sys::socket;
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Bump when any message enum or anything inside one changes: a parent and a
/// child from two builds must not talk.
pub const IMSG_VERSION: u32 = 5;

pub const IMSG_HEADER_SIZE: usize = 16;
/// The usual `max_frame`; only raftd and fused raise it.
pub const MAX_IMSGSIZE: usize = 16384;

const FD_MARK: u32 = 0x8000_0000;
const TYPE_VERSION: u32 = 0;
/// Taken from the socket at once, besides the rest of a large frame.
const READ_SIZE: usize = 65536;
/// Below every system's IOV_MAX.
const WRITE_IOVS: usize = 64;

/// One direction of a channel.
pub trait Message: Serialize + DeserializeOwned {
    /// The header's type, not 0 and different for each direction.
    const CHANNEL: u32;

    /// For logs, as `IMSG_FS_REQ`.
    fn name(&self) -> &'static str;

    /// How many raw bytes follow this message, exactly.
    fn bulk_len(&self) -> usize {
        0
    }

    /// Whether a descriptor may travel with this message.  With any other
    /// message one is an error; who needs one asks `take_fd`.
    fn wants_fd(&self) -> bool {
        false
    }
}

/// A message as it arrived.
#[derive(Debug)]
pub struct Imsg<M> {
    pub msg: M,
    pub peerid: u32,
    pub pid: u32,
    /// Closed when dropped.
    pub fd: Option<OwnedFd>,
    /// A descriptor was sent and the kernel could not deliver it.
    pub fd_lost: bool,
    /// The whole frame; the bulk bytes begin at `bulk_at`.
    pub frame: Vec<u8>,
    pub bulk_at: usize,
}

impl<M: Message> Imsg<M> {
    /// The descriptor, of a message that is nothing without it.
    pub fn take_fd(&mut self) -> Result<OwnedFd, ImsgError> {
        let name = self.msg.name();
        self.fd.take().ok_or(ImsgError::FdMissing { name })
    }

    pub fn bulk(&self) -> &[u8] {
        self.frame.get(self.bulk_at..).unwrap_or(&[])
    }

    /// The frame and the offset of the bulk bytes in it, without a copy.
    pub fn into_bulk_vec(self) -> (Vec<u8>, usize) {
        (self.frame, self.bulk_at)
    }
}

/// What is wrong with a channel.  When receiving each is final: the stream has
/// lost its frame boundaries or the other end is not what it should be.
#[derive(Debug)]
#[non_exhaustive]
pub enum ImsgError {
    Io(io::Error),
    /// The programs come from different builds.
    Version {
        ours: u32,
        theirs: u32,
    },
    /// The first frame was no version frame.
    NoVersion,
    /// A frame's length is not between a header and the maximum.
    Length {
        len: usize,
        max: usize,
    },
    Type {
        got: u32,
        want: u32,
    },
    /// The message does not decode (or, when sending, encode).
    Payload(postcard::Error),
    /// More or fewer bytes follow the message than it announces.
    Bulk {
        name: &'static str,
        got: usize,
        want: usize,
    },
    FdUnexpected {
        name: &'static str,
    },
    FdMissing {
        name: &'static str,
    },
    /// A descriptor where passing them was not allowed.
    FdNotAllowed,
    /// The stream ended inside a frame.
    Truncated,
}

impl fmt::Display for ImsgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImsgError::Io(err) => write!(f, "imsg: {err}"),
            ImsgError::Version { ours, theirs } => write!(
                f,
                "IMSG_VERSION: {theirs} from the other end, {ours} here: restart dfsd"
            ),
            ImsgError::NoVersion => {
                write!(f, "IMSG_VERSION: not the first message: restart dfsd")
            }
            ImsgError::Length { len, max } => {
                write!(f, "imsg: length {len}, not in {IMSG_HEADER_SIZE} to {max}")
            }
            ImsgError::Type { got, want } => write!(f, "imsg: type {got}, expected {want}"),
            ImsgError::Payload(err) => write!(f, "imsg: payload: {err}"),
            ImsgError::Bulk { name, got, want } => {
                write!(f, "{name}: {got} bytes after the message, expected {want}")
            }
            ImsgError::FdUnexpected { name } => write!(f, "{name}: unexpected descriptor"),
            ImsgError::FdMissing { name } => write!(f, "{name}: no descriptor"),
            ImsgError::FdNotAllowed => write!(f, "imsg: descriptor passing not allowed"),
            ImsgError::Truncated => write!(f, "imsg: closed inside a message"),
        }
    }
}

impl std::error::Error for ImsgError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ImsgError::Io(err) => Some(err),
            ImsgError::Payload(err) => Some(err),
            _ => None,
        }
    }
}

impl From<io::Error> for ImsgError {
    fn from(err: io::Error) -> Self {
        ImsgError::Io(err)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    typ: u32,
    len: usize,
    fd_mark: bool,
    peerid: u32,
    pid: u32,
}

impl Header {
    fn decode(bytes: &[u8; IMSG_HEADER_SIZE]) -> Header {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        let len = u32::from_le_bytes([e, f, g, h]);
        Header {
            typ: u32::from_le_bytes([a, b, c, d]),
            len: (len & !FD_MARK) as usize,
            fd_mark: len & FD_MARK != 0,
            peerid: u32::from_le_bytes([i, j, k, l]),
            pid: u32::from_le_bytes([m, n, o, p]),
        }
    }

    fn encode(&self) -> [u8; IMSG_HEADER_SIZE] {
        let mark = if self.fd_mark { FD_MARK } else { 0 };
        let words = [self.typ, self.len as u32 | mark, self.peerid, self.pid];
        let mut bytes = [0; IMSG_HEADER_SIZE];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A frame, its payload not yet looked into.
#[derive(Debug)]
struct Frame {
    header: Header,
    fd: Option<OwnedFd>,
    bytes: Vec<u8>,
    /// Bytes received so far.
    got: usize,
}

/// Cuts a stream into frames.  Does no I/O.
#[derive(Debug)]
struct Decoder {
    max_frame: usize,
    fdpass: bool,
    /// The beginning of a header, and the descriptor that came with it.
    head: Vec<u8>,
    head_fd: Option<OwnedFd>,
    partial: Option<Frame>,
    ready: VecDeque<Frame>,
    broken: Option<ImsgError>,
}

impl Decoder {
    fn new(max_frame: usize) -> Decoder {
        Decoder {
            max_frame: max_frame.min(!FD_MARK as usize),
            fdpass: false,
            head: Vec::with_capacity(IMSG_HEADER_SIZE),
            head_fd: None,
            partial: None,
            ready: VecDeque::new(),
            broken: None,
        }
    }

    /// Where the bytes which are missing from the current frame belong.
    fn missing(&mut self) -> &mut [u8] {
        match &mut self.partial {
            Some(frame) => frame.bytes.get_mut(frame.got..).unwrap_or(&mut []),
            None => &mut [],
        }
    }

    /// Takes what one receive gave: `direct` bytes already in `missing()`,
    /// then `rest`, and the descriptor that came with any of them.
    fn received(&mut self, direct: usize, rest: &[u8], mut fd: Option<OwnedFd>) {
        if let Some(frame) = &mut self.partial {
            frame.got += direct;
        }
        self.finish_partial();
        let mut rest = rest;
        while !rest.is_empty() && self.broken.is_none() {
            rest = if self.partial.is_some() {
                self.fill(rest)
            } else {
                self.take_head(rest, &mut fd)
            };
        }
        if self.broken.is_some() {
            self.partial = None;
            self.head_fd = None;
        }
    }

    /// Copies into the current frame; returns what belongs to later ones.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let missing = self.missing();
        let n = missing.len().min(bytes.len());
        let (now, later) = bytes.split_at(n);
        if let Some(to) = missing.get_mut(..n) {
            to.copy_from_slice(now);
        }
        if let Some(frame) = &mut self.partial {
            frame.got += n;
        }
        self.finish_partial();
        later
    }

    fn finish_partial(&mut self) {
        if let Some(frame) = self.partial.take_if(|f| f.got >= f.bytes.len()) {
            self.ready.push_back(frame);
        }
    }

    /// Collects a header; with its last byte begins a frame.  `fd` came with
    /// the receive that `bytes` belong to.
    fn take_head<'a>(&mut self, bytes: &'a [u8], fd: &mut Option<OwnedFd>) -> &'a [u8] {
        let begins_here = self.head.is_empty();
        let n = (IMSG_HEADER_SIZE - self.head.len()).min(bytes.len());
        let (now, later) = bytes.split_at(n);
        self.head.extend_from_slice(now);
        let Some(head) = self.head.first_chunk().copied() else {
            if begins_here {
                self.head_fd = fd.take();
            }
            return later;
        };
        self.head.clear();
        let header = Header::decode(&head);
        let own = match begins_here {
            true if header.fd_mark => fd.take(),
            true => None,
            // Dropped, thus closed, when this frame does not claim it.
            false => self.head_fd.take().filter(|_| header.fd_mark),
        };
        self.begin(header, head, own);
        later
    }

    fn begin(&mut self, header: Header, head: [u8; IMSG_HEADER_SIZE], fd: Option<OwnedFd>) {
        if header.len < IMSG_HEADER_SIZE || header.len > self.max_frame {
            self.broken = Some(ImsgError::Length {
                len: header.len,
                max: self.max_frame,
            });
            return;
        }
        if header.fd_mark && !self.fdpass {
            self.broken = Some(ImsgError::FdNotAllowed);
            return;
        }
        let mut bytes = vec![0; header.len];
        if let Some(to) = bytes.first_chunk_mut() {
            *to = head;
        }
        self.partial = Some(Frame {
            header,
            fd,
            bytes,
            got: IMSG_HEADER_SIZE,
        });
        self.finish_partial();
    }

    /// The other end closed.
    fn end(&mut self) {
        let inside = self.partial.is_some() || !self.head.is_empty();
        if inside && self.broken.is_none() {
            self.broken = Some(ImsgError::Truncated);
        }
    }
}

fn check_version(frame: &Frame) -> Result<(), ImsgError> {
    let payload = frame.bytes.get(IMSG_HEADER_SIZE..).unwrap_or(&[]);
    let Ok(bytes) = <[u8; 4]>::try_from(payload) else {
        return Err(ImsgError::NoVersion);
    };
    if frame.header.typ != TYPE_VERSION || frame.header.fd_mark {
        return Err(ImsgError::NoVersion);
    }
    let (ours, theirs) = (IMSG_VERSION, u32::from_le_bytes(bytes));
    if theirs != ours {
        return Err(ImsgError::Version { ours, theirs });
    }
    Ok(())
}

fn decode<M: Message>(frame: Frame) -> Result<Imsg<M>, ImsgError> {
    let header = frame.header;
    if header.typ != M::CHANNEL {
        return Err(ImsgError::Type {
            got: header.typ,
            want: M::CHANNEL,
        });
    }
    let payload = frame.bytes.get(IMSG_HEADER_SIZE..).unwrap_or(&[]);
    let (msg, bulk) = postcard::take_from_bytes::<M>(payload).map_err(ImsgError::Payload)?;
    let (name, want, got) = (msg.name(), msg.bulk_len(), bulk.len());
    if got != want {
        return Err(ImsgError::Bulk { name, got, want });
    }
    if header.fd_mark && !msg.wants_fd() {
        return Err(ImsgError::FdUnexpected { name });
    }
    Ok(Imsg {
        msg,
        peerid: header.peerid,
        pid: header.pid,
        fd_lost: header.fd_mark && frame.fd.is_none(),
        fd: frame.fd,
        bulk_at: frame.bytes.len() - got,
        frame: frame.bytes,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStatus {
    /// Something arrived: call `get` until it says None.
    Data,
    WouldBlock,
    /// The other end is gone; `get` says whether in the middle of a frame.
    Closed,
}

/// The receiving half.
pub struct ImsgReader<Rx> {
    socket: Arc<OwnedFd>,
    decoder: Decoder,
    versioned: bool,
    buf: Vec<u8>,
    rx: PhantomData<fn() -> Rx>,
}

impl<Rx: Message> ImsgReader<Rx> {
    /// One recvmsg(2).  The rest of a begun frame goes right to its place.
    /// Call `get` until None before the next `read`: what is not taken stays
    /// in memory.
    pub fn read(&mut self) -> io::Result<ReadStatus> {
        if self.decoder.broken.is_some() {
            return Ok(ReadStatus::Data);
        }
        let fdpass = self.decoder.fdpass;
        let missing = self.decoder.missing();
        let room = missing.len();
        let mut iov = [IoSliceMut::new(missing), IoSliceMut::new(&mut self.buf)];
        let (n, fd) = loop {
            match socket::recv(self.socket.as_fd(), &mut iov, fdpass) {
                Ok(got) => break got,
                Err(err) => match err.kind() {
                    io::ErrorKind::Interrupted => (),
                    io::ErrorKind::WouldBlock => return Ok(ReadStatus::WouldBlock),
                    // It died with messages of ours unread.
                    io::ErrorKind::ConnectionReset => break (0, None),
                    _ => return Err(err),
                },
            }
        };
        if n == 0 {
            self.decoder.end();
            return Ok(ReadStatus::Closed);
        }
        let direct = n.min(room);
        let rest = self.buf.get(..n - direct).unwrap_or(&[]);
        self.decoder.received(direct, rest, fd);
        Ok(ReadStatus::Data)
    }

    /// The next complete message.  After an error nothing more will come.
    pub fn get(&mut self) -> Result<Option<Imsg<Rx>>, ImsgError> {
        let result = self.next_imsg();
        if result.is_err() {
            self.decoder.ready.clear();
            self.decoder.broken = Some(ImsgError::Truncated);
        }
        result
    }

    fn next_imsg(&mut self) -> Result<Option<Imsg<Rx>>, ImsgError> {
        loop {
            let Some(frame) = self.decoder.ready.pop_front() else {
                return self.decoder.broken.take().map_or(Ok(None), Err);
            };
            if self.versioned {
                return decode(frame).map(Some);
            }
            check_version(&frame)?;
            self.versioned = true;
        }
    }

    /// Waits for a message; None when the other end closed.
    pub fn recv_blocking(&mut self) -> Result<Option<Imsg<Rx>>, ImsgError> {
        loop {
            if let Some(imsg) = self.get()? {
                return Ok(Some(imsg));
            }
            match self.read()? {
                ReadStatus::Data => (),
                ReadStatus::WouldBlock => {
                    self.wait_readable(None)?;
                }
                ReadStatus::Closed => return self.get(),
            }
        }
    }

    /// Waits until `read` has something to say; false on timeout.
    pub fn wait_readable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        wait(self.socket.as_fd(), PollFlags::POLLIN, timeout)
    }

    /// The socket, to register for readiness (one registration serves both
    /// halves).
    pub fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    /// See [`Imsgbuf::allow_fdpass`].
    pub fn allow_fdpass(&mut self) {
        self.decoder.fdpass = true;
    }
}

/// A frame to send.  Owned bulk bytes are a segment of their own.
struct Out {
    head: Vec<u8>,
    bulk: Option<Box<dyn AsRef<[u8]> + Send + Sync>>,
    bulk_len: usize,
    fd: Option<OwnedFd>,
}

impl Out {
    fn len(&self) -> usize {
        self.head.len() + self.bulk_len
    }

    fn bulk(&self) -> &[u8] {
        match &self.bulk {
            Some(bulk) => (**bulk).as_ref().get(..self.bulk_len).unwrap_or(&[]),
            None => &[],
        }
    }
}

/// The sending half.
pub struct ImsgWriter<Tx> {
    socket: Arc<OwnedFd>,
    max_frame: usize,
    fdpass: bool,
    pid: u32,
    queue: VecDeque<Out>,
    /// Bytes of the first frame which are sent.
    sent: usize,
    queued: usize,
    tx: PhantomData<fn(Tx)>,
}

impl<Tx: Message> ImsgWriter<Tx> {
    /// Queues a message.  The bulk bytes are copied behind it.  After an error
    /// nothing is queued.
    pub fn compose(
        &mut self,
        msg: &Tx,
        peerid: u32,
        fd: Option<OwnedFd>,
        bulk: &[u8],
    ) -> Result<(), ImsgError> {
        let mut head = self.encode(msg, peerid, fd.is_some(), bulk.len(), bulk.len())?;
        head.extend_from_slice(bulk);
        self.enqueue(head, None, 0, fd);
        Ok(())
    }

    /// Queues a message whose bulk bytes stay where they are until sent (a
    /// Vec, an Arc, a Bytes: anything that always gives the same slice).
    pub fn compose_owned<B>(
        &mut self,
        msg: &Tx,
        peerid: u32,
        fd: Option<OwnedFd>,
        bulk: B,
    ) -> Result<(), ImsgError>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        let len = bulk.as_ref().len();
        let head = self.encode(msg, peerid, fd.is_some(), len, 0)?;
        self.enqueue(head, Some(Box::new(bulk)), len, fd);
        Ok(())
    }

    /// Header and message; there is room for `spare` bytes more.
    fn encode(
        &self,
        msg: &Tx,
        peerid: u32,
        fd_mark: bool,
        bulk_len: usize,
        spare: usize,
    ) -> Result<Vec<u8>, ImsgError> {
        let (name, want, got) = (msg.name(), msg.bulk_len(), bulk_len);
        if got != want {
            return Err(ImsgError::Bulk { name, got, want });
        }
        if fd_mark && !msg.wants_fd() {
            return Err(ImsgError::FdUnexpected { name });
        }
        if fd_mark && !self.fdpass {
            return Err(ImsgError::FdNotAllowed);
        }
        let mut head = Vec::with_capacity(IMSG_HEADER_SIZE + 112 + spare);
        head.extend_from_slice(&[0; IMSG_HEADER_SIZE]);
        let mut head = postcard::to_extend(msg, head).map_err(ImsgError::Payload)?;
        let (len, max) = (head.len().saturating_add(bulk_len), self.max_frame);
        if len > max {
            return Err(ImsgError::Length { len, max });
        }
        let header = Header {
            typ: Tx::CHANNEL,
            len,
            fd_mark,
            peerid,
            pid: self.pid,
        };
        if let Some(to) = head.first_chunk_mut() {
            *to = header.encode();
        }
        Ok(head)
    }

    fn enqueue(
        &mut self,
        head: Vec<u8>,
        bulk: Option<Box<dyn AsRef<[u8]> + Send + Sync>>,
        bulk_len: usize,
        fd: Option<OwnedFd>,
    ) {
        let out = Out {
            head,
            bulk,
            bulk_len,
            fd,
        };
        self.queued += out.len();
        self.queue.push_back(out);
    }

    fn send_version(&mut self) {
        let header = Header {
            typ: TYPE_VERSION,
            len: IMSG_HEADER_SIZE + 4,
            fd_mark: false,
            peerid: 0,
            pid: self.pid,
        };
        let mut head = header.encode().to_vec();
        head.extend_from_slice(&IMSG_VERSION.to_le_bytes());
        self.enqueue(head, None, 0, None);
    }

    /// Sends until nothing is queued (true) or the socket is full (false).
    pub fn write(&mut self) -> io::Result<bool> {
        while !self.queue.is_empty() {
            match self.send_some() {
                Ok(n) => self.drain(n),
                Err(err) => match err.raw_os_error() {
                    Some(libc::EINTR) => (),
                    Some(libc::EAGAIN | libc::ENOBUFS) => return Ok(false),
                    // Too many descriptors in flight: without it the message
                    // arrives as fd_lost, and the receiver decides.
                    Some(libc::ETOOMANYREFS) if self.drop_fd() => (),
                    _ => return Err(err),
                },
            }
        }
        Ok(true)
    }

    /// One sendmsg(2): the first frame, and those behind it up to the next
    /// one with a descriptor.
    fn send_some(&self) -> io::Result<usize> {
        let mut iov = [IoSlice::new(&[]); WRITE_IOVS];
        let mut slots = iov.iter_mut();
        let mut used = 0;
        let mut fd = None;
        let mut skip = self.sent;
        'frames: for (i, out) in self.queue.iter().enumerate() {
            if let Some(own) = &out.fd {
                if i > 0 {
                    break;
                }
                fd = Some(own.as_fd());
            }
            for part in [out.head.as_slice(), out.bulk()] {
                let unsent = part.get(skip..).unwrap_or(&[]);
                skip = skip.saturating_sub(part.len());
                if unsent.is_empty() {
                    continue;
                }
                let Some(slot) = slots.next() else {
                    break 'frames;
                };
                *slot = IoSlice::new(unsent);
                used += 1;
            }
        }
        if used == 0 {
            // Owned bulk bytes have become fewer since they were queued.
            return Err(io::ErrorKind::InvalidData.into());
        }
        socket::send(self.socket.as_fd(), iov.get(..used).unwrap_or(&[]), fd)
    }

    /// Forgets `n` bytes which are sent.
    fn drain(&mut self, n: usize) {
        self.drop_fd();
        self.queued = self.queued.saturating_sub(n);
        self.sent += n;
        while let Some(len) = self.queue.front().map(Out::len) {
            if self.sent < len {
                break;
            }
            self.sent -= len;
            self.queue.pop_front();
        }
    }

    /// Closes the first frame's descriptor: it has left with the first byte.
    fn drop_fd(&mut self) -> bool {
        match self.queue.front_mut() {
            Some(first) => first.fd.take().is_some(),
            None => false,
        }
    }

    /// Bytes not yet sent; the measure for back-pressure.
    pub fn queued_bytes(&self) -> usize {
        self.queued
    }

    /// Sends all that is queued, waiting for room.
    pub fn flush_blocking(&mut self) -> io::Result<()> {
        while !self.write()? {
            self.wait_writable(None)?;
        }
        Ok(())
    }

    /// Waits until `write` can go on; false on timeout.
    pub fn wait_writable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        wait(self.socket.as_fd(), PollFlags::POLLOUT, timeout)
    }

    /// The socket, to register for readiness (one registration serves both
    /// halves).
    pub fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    /// See [`Imsgbuf::allow_fdpass`].
    pub fn allow_fdpass(&mut self) {
        self.fdpass = true;
    }

    /// Ends the channel in both directions: whoever waits on the other half
    /// sees it closed.
    pub fn shutdown(&self) -> io::Result<()> {
        use nix::sys::socket::{shutdown, Shutdown};
        Ok(shutdown(self.socket.as_raw_fd(), Shutdown::Both)?)
    }
}

/// One end of a channel: sends `Tx`, receives `Rx`.
pub struct Imsgbuf<Tx, Rx> {
    r: ImsgReader<Rx>,
    w: ImsgWriter<Tx>,
}

impl<Tx: Message, Rx: Message> Imsgbuf<Tx, Rx> {
    /// Takes a connected stream socket and queues the version frame.  No frame
    /// is longer than `max_frame`.
    pub fn new(fd: OwnedFd, max_frame: usize) -> Self {
        let socket = Arc::new(fd);
        let decoder = Decoder::new(max_frame);
        let mut w = ImsgWriter {
            socket: Arc::clone(&socket),
            max_frame: decoder.max_frame,
            fdpass: false,
            pid: std::process::id(),
            queue: VecDeque::new(),
            sent: 0,
            queued: 0,
            tx: PhantomData,
        };
        w.send_version();
        let r = ImsgReader {
            socket,
            buf: vec![0; decoder.max_frame.clamp(IMSG_HEADER_SIZE, READ_SIZE)],
            decoder,
            versioned: false,
            rx: PhantomData,
        };
        Imsgbuf { r, w }
    }

    /// Lets descriptors pass, in both directions; until then one is an error.
    pub fn allow_fdpass(&mut self) {
        self.r.allow_fdpass();
        self.w.allow_fdpass();
    }

    /// See [`ImsgReader::read`].
    pub fn read(&mut self) -> io::Result<ReadStatus> {
        self.r.read()
    }

    /// See [`ImsgReader::get`].
    pub fn get(&mut self) -> Result<Option<Imsg<Rx>>, ImsgError> {
        self.r.get()
    }

    /// See [`ImsgReader::recv_blocking`].  Sends nothing: flush first.
    pub fn recv_blocking(&mut self) -> Result<Option<Imsg<Rx>>, ImsgError> {
        self.r.recv_blocking()
    }

    pub fn wait_readable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        self.r.wait_readable(timeout)
    }

    /// See [`ImsgWriter::compose`].
    pub fn compose(
        &mut self,
        msg: &Tx,
        peerid: u32,
        fd: Option<OwnedFd>,
        bulk: &[u8],
    ) -> Result<(), ImsgError> {
        self.w.compose(msg, peerid, fd, bulk)
    }

    /// See [`ImsgWriter::compose_owned`].
    pub fn compose_owned<B>(
        &mut self,
        msg: &Tx,
        peerid: u32,
        fd: Option<OwnedFd>,
        bulk: B,
    ) -> Result<(), ImsgError>
    where
        B: AsRef<[u8]> + Send + Sync + 'static,
    {
        self.w.compose_owned(msg, peerid, fd, bulk)
    }

    /// See [`ImsgWriter::write`].
    pub fn write(&mut self) -> io::Result<bool> {
        self.w.write()
    }

    pub fn queued_bytes(&self) -> usize {
        self.w.queued_bytes()
    }

    pub fn flush_blocking(&mut self) -> io::Result<()> {
        self.w.flush_blocking()
    }

    pub fn wait_writable(&self, timeout: Option<Duration>) -> io::Result<bool> {
        self.w.wait_writable(timeout)
    }

    /// The two halves, which share the socket: one thread or task reads,
    /// others write.  The socket is closed with the last of them.
    pub fn into_split(self) -> (ImsgReader<Rx>, ImsgWriter<Tx>) {
        (self.r, self.w)
    }
}

impl<Rx> AsFd for ImsgReader<Rx> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<Tx> AsFd for ImsgWriter<Tx> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<Tx, Rx> AsFd for Imsgbuf<Tx, Rx> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.r.socket.as_fd()
    }
}
