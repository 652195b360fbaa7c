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

//! imsg over real socket pairs: framing, partial reads and writes, the fd
//! mark, limits, versions, and garbage.

use common::imsg::{
    Imsg, ImsgError, Imsgbuf, Message, ReadStatus, IMSG_HEADER_SIZE, IMSG_VERSION, MAX_IMSGSIZE,
};
use common::sys::socket;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Up {
    Note(String),
    File(u32),
    Bulk { len: u32 },
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Down {
    Number(u64),
}

impl Message for Up {
    const CHANNEL: u32 = 71;

    fn name(&self) -> &'static str {
        match self {
            Up::Note(..) => "IMSG_NOTE",
            Up::File(..) => "IMSG_FILE",
            Up::Bulk { .. } => "IMSG_BULK",
            Up::Nothing => "IMSG_NOTHING",
        }
    }

    fn bulk_len(&self) -> usize {
        match self {
            Up::Bulk { len } => *len as usize,
            _ => 0,
        }
    }

    fn wants_fd(&self) -> bool {
        matches!(self, Up::File(..))
    }
}

impl Message for Down {
    const CHANNEL: u32 = 72;

    fn name(&self) -> &'static str {
        "IMSG_NUMBER"
    }
}

type Child = Imsgbuf<Up, Down>;
type Parent = Imsgbuf<Down, Up>;

const MAX: usize = 2 << 20;
const FD_MARK: u32 = 0x8000_0000;

fn ends() -> (Child, Parent) {
    let (a, b) = socket::socketpair().unwrap();
    let (mut child, mut parent) = (Imsgbuf::new(a, MAX), Imsgbuf::new(b, MAX));
    child.allow_fdpass();
    parent.allow_fdpass();
    (child, parent)
}

/// A parent's end, and the other end bare, to write what no Imsgbuf would.
fn bare(max: usize) -> (OwnedFd, Parent) {
    let (a, b) = socket::socketpair().unwrap();
    let mut parent = Imsgbuf::new(b, max);
    parent.allow_fdpass();
    (a, parent)
}

fn send_all(fd: &OwnedFd, bytes: &[u8]) {
    let n = socket::send(fd.as_fd(), &[IoSlice::new(bytes)], None).unwrap();
    assert_eq!(n, bytes.len());
}

fn frame(typ: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [typ, len, 7, 1] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// A frame with its true length.
fn good(typ: u32, payload: &[u8]) -> Vec<u8> {
    frame(typ, (IMSG_HEADER_SIZE + payload.len()) as u32, payload)
}

fn version() -> Vec<u8> {
    good(0, &IMSG_VERSION.to_le_bytes())
}

fn up(msg: &Up) -> Vec<u8> {
    postcard::to_stdvec(msg).unwrap()
}

/// What the parent makes of these bytes, then end of file.
fn verdict(bytes: &[u8], max: usize) -> Result<Option<Imsg<Up>>, ImsgError> {
    let (tx, mut parent) = bare(max);
    send_all(&tx, bytes);
    drop(tx);
    parent.recv_blocking()
}

/// A file with a known inode, to recognise its descriptor.
fn file() -> (OwnedFd, u64) {
    let fd = OwnedFd::from(io::pipe().unwrap().0);
    let file = File::from(fd.try_clone().unwrap());
    (fd, file.metadata().unwrap().ino())
}

fn ino(imsg: &Imsg<Up>) -> Option<u64> {
    let fd = imsg.fd.as_ref()?.try_clone().unwrap();
    Some(File::from(fd).metadata().unwrap().ino())
}

/// All messages until the parent has seen the end.
fn drain(parent: &mut Parent) -> Vec<Imsg<Up>> {
    let mut all = Vec::new();
    while let Some(imsg) = parent.recv_blocking().unwrap() {
        all.push(imsg);
    }
    all
}

#[test]
fn there_and_back() {
    let (mut child, mut parent) = ends();
    let note = Up::Note("hello".into());
    child.compose(&note, 41, None, &[]).unwrap();
    assert!(child.queued_bytes() > IMSG_HEADER_SIZE * 2);
    child.flush_blocking().unwrap();
    assert_eq!(child.queued_bytes(), 0);
    let imsg = parent.recv_blocking().unwrap().unwrap();
    assert_eq!(imsg.msg, note);
    assert_eq!(imsg.peerid, 41);
    assert_eq!(imsg.pid, std::process::id());
    assert!(imsg.fd.is_none() && !imsg.fd_lost && imsg.bulk().is_empty());

    parent.compose(&Down::Number(9), 41, None, &[]).unwrap();
    assert!(parent.write().unwrap());
    let imsg = child.recv_blocking().unwrap().unwrap();
    assert_eq!(imsg.msg, Down::Number(9));
    drop(child);
    assert!(parent.recv_blocking().unwrap().is_none());
}

#[test]
fn nothing_there_is_not_the_end() {
    let (_child, mut parent) = ends();
    assert_eq!(parent.read().unwrap(), ReadStatus::WouldBlock);
    assert!(parent.get().unwrap().is_none());
}

/// Every byte by itself, so that each field of a header and each payload is
/// cut everywhere.
#[test]
fn one_byte_at_a_time() {
    let (tx, mut parent) = bare(MAX);
    let mut bytes = version();
    let mut bulk = up(&Up::Bulk { len: 5 });
    bulk.extend_from_slice(b"bytes");
    bytes.extend(good(71, &up(&Up::Note("a".into()))));
    bytes.extend(good(71, &bulk));
    bytes.extend(good(71, &up(&Up::Nothing)));
    let mut got = Vec::new();
    for byte in &bytes {
        send_all(&tx, &[*byte]);
        assert_eq!(parent.read().unwrap(), ReadStatus::Data);
        while let Some(imsg) = parent.get().unwrap() {
            got.push(imsg);
        }
    }
    let msgs: Vec<&Up> = got.iter().map(|imsg| &imsg.msg).collect();
    let want = [Up::Note("a".into()), Up::Bulk { len: 5 }, Up::Nothing];
    assert_eq!(msgs, want.iter().collect::<Vec<_>>());
    assert_eq!(got[1].bulk(), b"bytes");
    let (vec, at) = got.remove(1).into_bulk_vec();
    assert_eq!(&vec[at..], b"bytes");
}

/// The smallest buffers there are: writes stop in the middle of frames, and
/// descriptors still arrive with theirs.
#[test]
fn partial_writes() {
    let (mut child, mut parent) = ends();
    socket::set_bufs(child.as_fd(), 1).unwrap();
    let mut want = Vec::new();
    for i in 0..200u32 {
        let (fd, ino) = file();
        let bulk = vec![i as u8; 3001 * (i as usize % 7)];
        let len = bulk.len() as u32;
        child.compose(&Up::File(i), i, Some(fd), &[]).unwrap();
        child.compose(&Up::Bulk { len }, i, None, &bulk).unwrap();
        child
            .compose_owned(&Up::Bulk { len }, i, None, bulk.clone())
            .unwrap();
        want.push((ino, bulk));
    }
    let mut stops = 0;
    let mut got = Vec::new();
    while !child.write().unwrap() {
        stops += 1;
        while parent.read().unwrap() == ReadStatus::Data {
            while let Some(imsg) = parent.get().unwrap() {
                got.push(imsg);
            }
        }
    }
    drop(child);
    got.extend(drain(&mut parent));
    assert!(stops > 50, "{stops} partial writes");
    assert_eq!(got.len(), 600);
    for (i, (imsgs, (want_ino, bulk))) in got.chunks(3).zip(&want).enumerate() {
        assert_eq!(imsgs[0].msg, Up::File(i as u32));
        assert_eq!(ino(&imsgs[0]), Some(*want_ino));
        for imsg in &imsgs[1..] {
            assert_eq!(imsg.peerid, i as u32);
            assert_eq!(imsg.bulk(), bulk);
            assert!(imsg.fd.is_none());
        }
    }
}

#[test]
fn descriptors_stay_with_their_messages() {
    let (mut child, mut parent) = ends();
    let mut want = Vec::new();
    for i in 0..20 {
        let fd = (i % 3 == 1).then(file);
        want.push(fd.as_ref().map(|(_, ino)| *ino));
        match fd {
            Some((fd, _)) => child.compose(&Up::File(i), i, Some(fd), &[]).unwrap(),
            None => child.compose(&Up::Nothing, i, None, &[]).unwrap(),
        }
    }
    child.flush_blocking().unwrap();
    drop(child);
    let got: Vec<_> = drain(&mut parent).iter().map(ino).collect();
    assert_eq!(got, want);
}

/// The descriptor comes with the first byte of a header which is complete
/// only after the next descriptor is there.
#[test]
fn descriptor_with_half_a_header() {
    let (tx, mut parent) = bare(MAX);
    send_all(&tx, &version());
    let payload = up(&Up::File(1));
    let len = (IMSG_HEADER_SIZE + payload.len()) as u32 | FD_MARK;
    let marked = frame(71, len, &payload);
    let (one, one_ino) = file();
    let (two, two_ino) = file();
    let send = |bytes: &[u8], fd: Option<&OwnedFd>| {
        let fd = fd.map(|fd| fd.as_fd());
        socket::send(tx.as_fd(), &[IoSlice::new(bytes)], fd).unwrap();
    };
    send(&marked[..1], Some(&one));
    assert_eq!(parent.read().unwrap(), ReadStatus::Data);
    assert!(parent.get().unwrap().is_none());
    send(&marked[1..9], None);
    assert_eq!(parent.read().unwrap(), ReadStatus::Data);
    send(&marked[9..], None);
    send(&marked, Some(&two));
    drop(tx);
    let got = drain(&mut parent);
    let inos: Vec<_> = got.iter().map(ino).collect();
    assert_eq!(inos, [Some(one_ino), Some(two_ino)]);
}

/// A descriptor that no marked frame claims is closed, and the next marked
/// frame does not get it.
#[test]
fn unclaimed_descriptors_are_closed() {
    let (tx, mut parent) = bare(MAX);
    send_all(&tx, &version());
    let plain = good(71, &up(&Up::Nothing));
    let payload = up(&Up::File(1));
    let marked = frame(
        71,
        (IMSG_HEADER_SIZE + payload.len()) as u32 | FD_MARK,
        &payload,
    );
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = OwnedFd::from(reader);
    socket::send(tx.as_fd(), &[IoSlice::new(&plain)], Some(reader.as_fd())).unwrap();
    send_all(&tx, &marked);
    drop((tx, reader));
    let got = drain(&mut parent);
    assert_eq!(got.len(), 2);
    assert!(got.iter().all(|imsg| imsg.fd.is_none()));
    assert!(!got[0].fd_lost && got[1].fd_lost);
    // Nobody holds the reading end any more.
    let err = writer.write(b"x").unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_descriptor_works_and_is_not_inherited() {
    let (mut child, mut parent) = ends();
    let (mut reader, writer) = io::pipe().unwrap();
    child
        .compose(&Up::File(0), 0, Some(writer.into()), &[])
        .unwrap();
    child.flush_blocking().unwrap();
    let mut imsg = parent.recv_blocking().unwrap().unwrap();
    let fd = imsg.take_fd().unwrap();
    assert!(matches!(
        imsg.take_fd(),
        Err(ImsgError::FdMissing { name: "IMSG_FILE" })
    ));
    let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, libc::FD_CLOEXEC);
    File::from(fd).write_all(b"through").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

#[test]
fn descriptors_only_where_allowed() {
    let (a, b) = socket::socketpair().unwrap();
    let (mut child, mut parent): (Child, Parent) = (Imsgbuf::new(a, MAX), Imsgbuf::new(b, MAX));
    let err = child
        .compose(&Up::File(0), 0, Some(file().0), &[])
        .unwrap_err();
    assert!(matches!(err, ImsgError::FdNotAllowed));
    child.allow_fdpass();
    child.compose(&Up::File(0), 0, Some(file().0), &[]).unwrap();
    let err = child
        .compose(&Up::Nothing, 0, Some(file().0), &[])
        .unwrap_err();
    assert!(matches!(
        err,
        ImsgError::FdUnexpected {
            name: "IMSG_NOTHING"
        }
    ));
    child.flush_blocking().unwrap();
    let err = parent.recv_blocking().unwrap_err();
    assert!(matches!(err, ImsgError::FdNotAllowed), "{err}");
}

#[test]
fn a_mark_on_the_wrong_message() {
    let payload = up(&Up::Nothing);
    let marked = frame(
        71,
        (IMSG_HEADER_SIZE + payload.len()) as u32 | FD_MARK,
        &payload,
    );
    let err = verdict(&[version(), marked].concat(), MAX).unwrap_err();
    assert!(matches!(err, ImsgError::FdUnexpected { .. }), "{err}");
}

#[test]
fn version_is_first_and_equal() {
    let theirs = IMSG_VERSION + 1;
    let err = verdict(&good(0, &theirs.to_le_bytes()), MAX).unwrap_err();
    assert!(matches!(err, ImsgError::Version { ours: IMSG_VERSION, theirs: t } if t == theirs));
    assert!(err.to_string().ends_with("restart dfsd"), "{err}");

    let err = verdict(&good(71, &up(&Up::Nothing)), MAX).unwrap_err();
    assert!(matches!(err, ImsgError::NoVersion), "{err}");
    for payload in [&b""[..], b"\x01\0\0", b"\x01\0\0\0\0"] {
        let err = verdict(&good(0, payload), MAX).unwrap_err();
        assert!(matches!(err, ImsgError::NoVersion), "{err}");
    }
    // Only once.
    let err = verdict(&[version(), version()].concat(), MAX).unwrap_err();
    assert!(matches!(err, ImsgError::Type { got: 0, want: 71 }), "{err}");
}

#[test]
fn lengths_outside_the_limits() {
    for len in [0, 1, 15, MAX_IMSGSIZE as u32 + 1, !FD_MARK, !0] {
        let bytes = [version(), frame(71, len, b"")].concat();
        let err = verdict(&bytes, MAX_IMSGSIZE).unwrap_err();
        let want = (len & !FD_MARK) as usize;
        assert!(matches!(err, ImsgError::Length { len, max: MAX_IMSGSIZE } if len == want));
    }
    let long = Up::Note("x".repeat(MAX_IMSGSIZE - 30));
    let bytes = [version(), good(71, &up(&long))].concat();
    assert_eq!(verdict(&bytes, MAX_IMSGSIZE).unwrap().unwrap().msg, long);
    let (a, _b) = socket::socketpair().unwrap();
    let mut child: Child = Imsgbuf::new(a, MAX_IMSGSIZE);
    let before = child.queued_bytes();
    let long = Up::Note("x".repeat(MAX_IMSGSIZE));
    let err = child.compose(&long, 0, None, &[]).unwrap_err();
    assert!(matches!(err, ImsgError::Length { .. }), "{err}");
    assert_eq!(child.queued_bytes(), before);
}

#[test]
fn payload_must_fit_exactly() {
    // No payload, an unknown variant, a string longer than the frame.
    for payload in [&b""[..], b"\x09", b"\x00\xff\x01abc"] {
        let err = verdict(&[version(), good(71, payload)].concat(), MAX).unwrap_err();
        assert!(matches!(err, ImsgError::Payload(..)), "{err}");
    }
    let mut trailing = up(&Up::Nothing);
    trailing.push(0);
    let err = verdict(&[version(), good(71, &trailing)].concat(), MAX).unwrap_err();
    assert!(matches!(
        err,
        ImsgError::Bulk {
            name: "IMSG_NOTHING",
            got: 1,
            want: 0
        }
    ));
    let mut short = up(&Up::Bulk { len: 4 });
    short.extend_from_slice(b"abc");
    let err = verdict(&[version(), good(71, &short)].concat(), MAX).unwrap_err();
    assert!(matches!(
        err,
        ImsgError::Bulk {
            name: "IMSG_BULK",
            got: 3,
            want: 4
        }
    ));

    let (mut child, _parent) = ends();
    let err = child
        .compose(&Up::Bulk { len: 4 }, 0, None, b"abc")
        .unwrap_err();
    assert!(matches!(
        err,
        ImsgError::Bulk {
            got: 3,
            want: 4,
            ..
        }
    ));
}

#[test]
fn wrong_direction() {
    let err = verdict(&[version(), good(72, b"\0\0")].concat(), MAX).unwrap_err();
    assert!(
        matches!(err, ImsgError::Type { got: 72, want: 71 }),
        "{err}"
    );
}

#[test]
fn what_came_before_an_error_is_delivered() {
    let (tx, mut parent) = bare(MAX);
    let bytes = [version(), good(71, &up(&Up::Nothing)), frame(71, 3, b"")].concat();
    send_all(&tx, &bytes);
    assert_eq!(parent.read().unwrap(), ReadStatus::Data);
    assert_eq!(parent.get().unwrap().unwrap().msg, Up::Nothing);
    assert!(matches!(
        parent.get(),
        Err(ImsgError::Length { len: 3, .. })
    ));
    // And it stays broken, without waiting.
    assert_eq!(parent.read().unwrap(), ReadStatus::Data);
    assert!(parent.get().is_err());
    assert!(parent.recv_blocking().is_err());
}

#[test]
fn cut_off_anywhere() {
    let bytes = [version(), good(71, &up(&Up::Note("abc".into())))].concat();
    for cut in 1..bytes.len() {
        let result = verdict(&bytes[..cut], MAX);
        if cut == version().len() {
            assert!(result.unwrap().is_none());
        } else {
            assert!(matches!(result, Err(ImsgError::Truncated)), "cut at {cut}");
        }
    }
}

/// The other end dies with our messages unread: closed, not an I/O error.
#[test]
fn death_of_the_other_end() {
    let (mut child, mut parent) = ends();
    parent.compose(&Down::Number(1), 0, None, &[]).unwrap();
    parent.flush_blocking().unwrap();
    child.compose(&Up::Nothing, 0, None, &[]).unwrap();
    child.flush_blocking().unwrap();
    drop(child);
    assert_eq!(drain(&mut parent).len(), 1);
    parent.compose(&Down::Number(2), 0, None, &[]).unwrap();
    assert_eq!(
        parent.write().unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

/// A megabyte each way, from threads, over the halves.
#[test]
fn bulk_over_split_ends() {
    const LEN: usize = 1 << 20;
    const COUNT: u32 = 16;
    let (child, parent) = ends();
    let (mut child_r, mut child_w) = child.into_split();
    let (mut parent_r, mut parent_w) = parent.into_split();
    let pattern = |i: u32| (0..LEN).map(move |at| (at as u32 ^ i).to_le_bytes()[0]);
    let writer = std::thread::spawn(move || {
        for i in 0..COUNT {
            let len = LEN as u32;
            let bulk: Vec<u8> = pattern(i).collect();
            child_w
                .compose_owned(&Up::Bulk { len }, i, None, bulk)
                .unwrap();
            child_w.flush_blocking().unwrap();
        }
        child_w
    });
    for i in 0..COUNT {
        let imsg = parent_r.recv_blocking().unwrap().unwrap();
        assert_eq!(imsg.peerid, i);
        assert!(imsg.bulk().iter().copied().eq(pattern(i)));
        parent_w
            .compose(&Down::Number(i.into()), i, None, &[])
            .unwrap();
        parent_w.flush_blocking().unwrap();
        let answer = child_r.recv_blocking().unwrap().unwrap();
        assert_eq!(answer.msg, Down::Number(i.into()));
    }
    let child_w = writer.join().unwrap();
    // A reader that waits is woken by shutdown.
    let reader = std::thread::spawn(move || child_r.recv_blocking().unwrap().is_none());
    child_w.shutdown().unwrap();
    assert!(reader.join().unwrap());
    assert!(parent_r.recv_blocking().unwrap().is_none());
}

/// xorshift64*, so that a failure repeats.
struct Prng(u64);

impl Prng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A frame that is wrong in some way more often than not.
fn garbage(rng: &mut Prng) -> Vec<u8> {
    let mut payload = match rng.below(5) {
        0 => up(&Up::Nothing),
        1 => up(&Up::Note("note".into())),
        2 => up(&Up::Bulk {
            len: rng.below(40) as u32,
        }),
        3 => up(&Up::File(1)),
        _ => Vec::new(),
    };
    let more = if rng.below(3) == 0 { 24 } else { 1 };
    for _ in 0..rng.below(more) {
        payload.push(rng.next() as u8);
    }
    let mut bytes = good(71, &payload);
    let wrong = if rng.below(2) == 0 { 4 } else { 1 };
    for _ in 0..rng.below(wrong) {
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] = rng.next() as u8;
    }
    if rng.below(8) == 0 {
        bytes.truncate(rng.below(bytes.len() as u64) as usize);
    }
    bytes
}

/// Whatever comes, it is a message, an error or the end.  Several frames go
/// into one stream, and a stream ends at its first error.
#[test]
fn garbage_never_panics() {
    let mut rng = Prng(0x6466_7364);
    let (mut frames, mut messages, mut errors) = (0, 0, 0);
    while frames < 100_000 {
        let (tx, mut parent) = bare(256);
        let mut bytes = match rng.below(50) {
            0 => garbage(&mut rng),
            _ => version(),
        };
        for _ in 0..=rng.below(3) {
            bytes.extend(garbage(&mut rng));
            frames += 1;
        }
        send_all(&tx, &bytes);
        drop(tx);
        loop {
            match parent.recv_blocking() {
                Ok(Some(imsg)) => {
                    messages += 1;
                    assert_eq!(imsg.bulk().len(), imsg.msg.bulk_len());
                }
                Ok(None) => break,
                Err(ImsgError::Io(err)) => panic!("{err}"),
                Err(_) => {
                    errors += 1;
                    break;
                }
            }
        }
    }
    assert!(messages > 10_000 && errors > 10_000, "{messages}, {errors}");
}

#[test]
fn peer_credentials() {
    let (a, _b) = socket::socketpair().unwrap();
    let uid = nix::unistd::getuid().as_raw();
    let gid = nix::unistd::getgid().as_raw();
    assert_eq!(socket::getpeereid(a.as_fd()).unwrap(), (uid, gid));
}

#[test]
fn large_socket_buffers() {
    let (a, b) = socket::socketpair().unwrap();
    let chunk = vec![0u8; 64 << 10];
    let fill = |fd: &OwnedFd| {
        let mut total = 0;
        while let Ok(n) = socket::send(fd.as_fd(), &[IoSlice::new(&chunk)], None) {
            total += n;
        }
        total
    };
    let before = fill(&a);
    let mut sink = vec![0; 1 << 20];
    while socket::recv(b.as_fd(), &mut [IoSliceMut::new(&mut sink)], false).is_ok() {}
    socket::set_bufs(a.as_fd(), before * 8).unwrap();
    // Without privilege the system's maximum may be no more than the default.
    let after = fill(&a);
    let grown = after > before * 2;
    assert!(
        grown || !nix::unistd::geteuid().is_root(),
        "{before}, {after}"
    );
}
