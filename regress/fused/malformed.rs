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

//! Requests that no kernel sends.  fused answers them with an error, or ends
//! with a line in its log and dfsd starts another; it neither hangs nor spins.
//!
//! The FUSE library parses them, and has three ways: what it cannot parse but
//! for a whole header it answers with ENOSYS; a header that is cut ends its
//! loop; and a few things it asserts, which is a panic.

#![forbid(unsafe_code)]

use crate::client::{fails, Client};
use crate::kernel::{message, u32s, u64_at, u64s, Op, IN_HEADER};
use crate::tree::Mode;
use crate::{openbsd, unmounted, OpenBsd, Options};
use nix::errno::Errno;
use nix::Result;
use std::thread;

const UNKNOWN: u64 = 999_999;

/// Ends as it must: within its time, with a word, and everybody is told.
fn ends(message: impl FnOnce(u64) -> Vec<u8>, word: &str) {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    assert_eq!(fails(m.device.odd(message)), Errno::ENXIO);
    assert_eq!(m.fused.wait_exit().code(), Some(1));
    let log = m.fused.log();
    let fatal: Vec<&str> = log.lines().filter(|l| l.starts_with("fatal")).collect();
    assert!(fatal.len() == 1 && fatal[0].contains(word), "{log}");
}

fn odd(m: &OpenBsd, op: u32, node: u64, body: &[u8]) -> Result<Vec<u8>> {
    m.device.odd(|unique| message(op, unique, node, 0, body))
}

#[test]
fn a_header_that_is_cut() {
    ends(
        |unique| message(Op::Getattr as u32, unique, 1, 0, &[0; 16])[..20].to_vec(),
        "Invalid request",
    );
}

#[test]
fn less_than_its_length_says() {
    ends(
        |unique| {
            let mut message = message(Op::Getattr as u32, unique, 1, 0, &[0; 16]);
            message.truncate(IN_HEADER + 8);
            message
        },
        "Invalid request",
    );
}

#[test]
fn a_length_less_than_its_header() {
    ends(
        |unique| {
            let mut message = message(Op::Getattr as u32, unique, 1, 0, &[0; 16]);
            message[..4].copy_from_slice(&8u32.to_ne_bytes());
            message
        },
        "panic",
    );
}

#[test]
fn a_write_of_another_size_than_it_says() {
    ends(
        |unique| {
            let mut body = u64s(&[0, 0]);
            body.extend(u32s(&[100, 0, 0, 0, 0, 0]));
            body.extend(b"less");
            message(Op::Write as u32, unique, 1, 0, &body)
        },
        "panic",
    );
}

/// Linux rounds it, so that there nobody can send it.
#[test]
fn a_time_that_cannot_be_expressed() {
    ends(
        |unique| {
            let mut body = u32s(&[16, 0]);
            body.extend(u64s(&[0, 0, 0, i64::MIN as u64, 0, 0]));
            body.extend(u32s(&[1, 0, 0, 0, 0, 0, 0, 0]));
            message(Op::Setattr as u32, unique, 1, 0, &body)
        },
        "panic",
    );
}

#[test]
fn the_end_without_a_word() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.device.hang_up();
    assert_eq!(m.fused.wait_exit().code(), Some(1));
    assert!(m.fused.log().contains("Invalid request"));
}

#[test]
fn something_else_before_init() {
    let Some((mut fused, device)) = unmounted() else {
        return;
    };
    let answer = device.odd(|unique| message(Op::Getattr as u32, unique, 1, 0, &[0; 16]));
    assert_eq!(fails(answer), Errno::EIO);
    assert_eq!(fused.wait_exit().code(), Some(1));
    assert!(fused.log().contains("FUSE device"), "{}", fused.log());
}

#[test]
fn what_cannot_be_parsed() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    let get = |body: &[u8]| odd(&m, Op::Getattr as u32, 1, body);
    assert_eq!(get(&[0; 8]), Err(Errno::ENOSYS));
    assert_eq!(get(&[]), Err(Errno::ENOSYS));
    // More than there is to parse is not looked at.
    assert_eq!(get(&[0; 64]).unwrap().len(), 104);
    assert_eq!(odd(&m, Op::Lookup as u32, 1, b"no end"), Err(Errno::ENOSYS));
    let rename = [u64s(&[1]), b"a\0b".to_vec()].concat();
    assert_eq!(odd(&m, Op::Rename as u32, 1, &rename), Err(Errno::ENOSYS));
    for op in [0, 7, 19, 99, 4096, u32::MAX] {
        assert_eq!(odd(&m, op, 1, &[0; 128]), Err(Errno::ENOSYS), "{op}");
    }
    // INIT once more.
    assert_eq!(odd(&m, 26, 0, &[0; 16]), Err(Errno::EIO));
    m.put("f", b"text").unwrap();
    assert_eq!(m.get("f").unwrap(), b"text");
    m.end();
}

#[test]
fn inodes_that_are_not_there() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    let call = |op: Op, body: &[u8]| fails(m.device.call(op, UNKNOWN, 0, body));
    assert_eq!(call(Op::Getattr, &[0; 16]), Errno::ESTALE);
    assert_eq!(call(Op::Lookup, b"x\0"), Errno::ENOENT);
    assert_eq!(call(Op::Readlink, &[]), Errno::ESTALE);
    assert_eq!(call(Op::Open, &[0; 8]), Errno::ESTALE);
    // In a directory that is gone there are no names; this kernel does not look
    // again.
    assert_eq!(call(Op::Unlink, b"x\0"), Errno::ENOENT);
    assert_eq!(call(Op::Mkdir, b"\0\0\0\0\0\0\0\0x\0"), Errno::ENOENT);
    assert_eq!(call(Op::Setattr, &[0; 88]), Errno::ESTALE);
    let read = [u64s(&[0, 0]), u32s(&[100, 0, 0, 0, 0, 0])].concat();
    assert_eq!(call(Op::Read, &read), Errno::ESTALE);
    assert_eq!(call(Op::Readdir, &read), Errno::ESTALE);
    assert_eq!(call(Op::Fallocate, &fallocate(0, 10, 0)), Errno::ESTALE);
    assert_eq!(call(Op::Lseek, &lseek(0, 3)), Errno::ESTALE);
    assert_eq!(
        m.write_node(UNKNOWN, 5, b"bytes", 0).unwrap_err(),
        Errno::ESTALE
    );
    m.device.call(Op::Flush, UNKNOWN, 0, &[0; 24]).unwrap();
    m.device.call(Op::Release, UNKNOWN, 0, &[0; 24]).unwrap();
    m.device.call(Op::Releasedir, UNKNOWN, 0, &[0; 24]).unwrap();
    assert_eq!(m.tree.asked("release"), 0, "it was never open");
    m.end();
}

#[test]
fn names_and_sizes_out_of_range() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", &[1; 5000]).unwrap();
    let node = m.node("f").unwrap();
    let call = |op: Op, body: &[u8]| fails(m.device.call(op, 1, 0, body));
    for name in [
        &b"\0"[..],
        b"a/b\0",
        b".\0",
        &[[b'x'; 300].as_slice(), b"\0"].concat(),
    ] {
        let long = if name.len() > 256 {
            Errno::ENAMETOOLONG
        } else {
            Errno::EINVAL
        };
        assert_eq!(call(Op::Unlink, name), long);
        assert_eq!(call(Op::Rmdir, name), long);
        assert_eq!(call(Op::Mkdir, &[&[0; 8], name].concat()), long);
        assert_eq!(call(Op::Link, &[&u64s(&[node]), name].concat()), long);
        assert_eq!(
            call(Op::Rename, &[&u64s(&[1]), name, b"f\0"].concat()),
            long
        );
        assert_eq!(
            call(Op::Rename, &[&u64s(&[1])[..], b"f\0", name].concat()),
            long
        );
    }
    assert_eq!(call(Op::Lookup, b"a/b\0"), Errno::ENOENT);
    let target = [b"l\0", [b't'; 5000].as_slice(), b"\0"].concat();
    assert_eq!(call(Op::Symlink, &target), Errno::ENAMETOOLONG);

    let io = |offset: u64, size: u32| [u64s(&[0, offset]), u32s(&[size, 0, 0, 0, 0, 0])].concat();
    let size = usize::MAX;
    let read = m
        .device
        .call_sized(Op::Read, node, 0, &io(0, u32::MAX), size);
    assert_eq!(read.unwrap().len(), 5000);
    let read = |offset| m.device.call(Op::Read, node, 0, &io(offset, 10));
    assert_eq!(read(1 << 62), Ok(vec![]));
    assert_eq!(fails(read(u64::MAX)), Errno::EINVAL);
    let write = |offset| fails(m.device.call(Op::Write, node, 0, &io(offset, 0)));
    assert_eq!(write(u64::MAX), Errno::EINVAL);
    assert_eq!(write(1 << 62), Errno::EFBIG);
    let readdir = m.device.call(Op::Readdir, 1, 0, &io(0, 0));
    assert_eq!(readdir, Ok(vec![]));
    let readdir = m.device.call(Op::Readdir, 1, 0, &io(u64::MAX, 4096));
    assert_eq!(readdir, Ok(vec![]));
    assert_eq!(m.get("f").unwrap(), [1; 5000]);
    m.end();
}

fn fallocate(offset: u64, len: u64, mode: u32) -> Vec<u8> {
    [u64s(&[0, offset, len]), u32s(&[mode, 0])].concat()
}

fn lseek(offset: i64, whence: u32) -> Vec<u8> {
    [u64s(&[0, offset as u64]), u32s(&[whence, 0])].concat()
}

#[test]
fn ranges_that_no_file_has() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", &[1; 5000]).unwrap();
    let node = m.node("f").unwrap();
    let call = |op: Op, body: &[u8]| m.device.call(op, node, 0, body);
    let half = 1 << 63;
    for mode in [0, 1, 3, 0x10, 0x11] {
        for (offset, len, want) in [
            (0, 0, Errno::EINVAL),
            (1, half - 1, Errno::EFBIG),
            (half - 1, half - 1, Errno::EFBIG),
            ((1 << 43) - 1, 2, Errno::EFBIG),
        ] {
            let answer = call(Op::Fallocate, &fallocate(offset, len, mode));
            assert_eq!(fails(answer), want, "{mode:#x} {offset} {len}");
        }
        // The library's own word.
        for (offset, len) in [(half, 1), (u64::MAX, 1), (0, half), (1, u64::MAX)] {
            let answer = call(Op::Fallocate, &fallocate(offset, len, mode));
            assert_eq!(fails(answer), Errno::EINVAL);
        }
    }
    for mode in [2, 4, 8, 0x12, 0x13, 0x20, 0x40, u32::MAX] {
        let answer = call(Op::Fallocate, &fallocate(0, 4096, mode));
        assert_eq!(fails(answer), Errno::EOPNOTSUPP, "{mode:#x}");
    }
    assert_eq!(m.tree.asked("fallocate"), 0);
    for (offset, whence, want) in [
        (5000, 3, Errno::ENXIO),
        (5000, 4, Errno::ENXIO),
        (i64::MAX, 3, Errno::ENXIO),
        (i64::MAX, 4, Errno::ENXIO),
        (-1, 3, Errno::ENXIO),
        (i64::MIN, 4, Errno::ENXIO),
        (0, 0, Errno::EINVAL),
        (0, u32::MAX, Errno::EINVAL),
    ] {
        let answer = call(Op::Lseek, &lseek(offset, whence));
        assert_eq!(fails(answer), want, "{offset} {whence}");
    }
    assert_eq!(u64_at(&call(Op::Lseek, &lseek(10, 4)).unwrap(), 0), 5000);
    // A kernel that does not ask for it may.
    call(Op::Fallocate, &fallocate(100, 50, 3)).unwrap();
    let mut want = [1; 5000];
    want[100..150].fill(0);
    assert_eq!(m.get("f").unwrap(), want);
    m.end();
}

/// Not that no kernel would send it, but only Linux does, and locks.
#[test]
fn a_read_waits_for_zeros_under_way() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", &[1; 5000]).unwrap();
    let node = m.node("f").unwrap();
    m.tree.set_mode(Mode::Hold);
    let asked = m.tree.asked("fsync");
    thread::scope(|s| {
        let change = s.spawn(|| {
            let punch = fallocate(0, 2000, 3);
            m.device.call(Op::Fallocate, node, 0, &punch)
        });
        m.tree.wait_held(1);
        let read = s.spawn(|| {
            let body = [u64s(&[0, 1000]), u32s(&[10, 0, 0, 0, 0, 0])].concat();
            m.device.call_sized(Op::Read, node, 0, &body, 10)
        });
        // raftd would let a change wait for company.
        m.tree.wait_asked("fsync", asked + 1);
        m.tree.apply_held();
        change.join().unwrap().unwrap();
        assert_eq!(read.join().unwrap().unwrap(), [0; 10]);
    });
    m.end();
}

/// What else the kernel of Linux sends.
const FSYNCDIR: u32 = 30;
const COPY_FILE_RANGE: u32 = 47;

/// The inode says which file it is, whosever the handle.
#[test]
fn handles_of_other_files() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", &[1; 5000]).unwrap();
    m.put("g", &[2; 5000]).unwrap();
    let (f, g) = (m.node("f").unwrap(), m.node("g").unwrap());
    let opened = |op: Op, node: u64, flags: u32| {
        u64_at(&m.device.call(op, node, 0, &u32s(&[flags, 0])).unwrap(), 0)
    };
    let of_g = opened(Op::Open, g, 2);
    let of_dir = opened(Op::Opendir, 1, 0);
    for fh in [of_g, of_dir, 12_345, u64::MAX] {
        let io =
            |offset: u64, size: u32| [u64s(&[fh, offset]), u32s(&[size, 0, 0, 0, 0, 0])].concat();
        let read = m.device.call_sized(Op::Read, f, 0, &io(0, 5000), 5000);
        assert_eq!(read.unwrap(), [1; 5000]);
        let listed = m.device.call_sized(Op::Readdir, 1, 0, &io(0, 4096), 4096);
        assert!(!listed.unwrap().is_empty());
        // No answer is wrong but that of another file, or none.
        let _ = odd(&m, Op::Readdir as u32, f, &io(0, 4096));
        let _ = odd(&m, Op::Read as u32, 1, &io(0, 4096));
        let _ = odd(&m, Op::Write as u32, f, &[io(4998, 2), vec![1; 2]].concat());
        let body = [u64s(&[fh]), vec![0; 24]].concat();
        for op in [Op::Fsync as u32, Op::Flush as u32, FSYNCDIR] {
            let _ = odd(&m, op, f, &body);
        }
        let size = [u32s(&[8 | 64, 0]), u64s(&[fh, 5000]), vec![0; 64]].concat();
        let _ = odd(&m, Op::Setattr as u32, f, &size);
        assert_eq!(m.get("f").unwrap(), [1; 5000]);
        assert_eq!(m.get("g").unwrap(), [2; 5000]);
    }
    // Given back for another file, and twice.
    for node in [f, f, g, g] {
        let _ = odd(
            &m,
            Op::Release as u32,
            node,
            &[u64s(&[of_g]), vec![0; 16]].concat(),
        );
        let _ = odd(
            &m,
            Op::Releasedir as u32,
            node,
            &[u64s(&[of_dir]), vec![0; 16]].concat(),
        );
    }
    m.put("g", &[3; 100]).unwrap();
    assert_eq!(m.get("f").unwrap(), [1; 5000]);
    m.end();
}

/// At 2^63 and at the end of what can be counted; of nothing; of what is not
/// there.  Each gets an error, or does nothing.
#[test]
fn ranges_out_of_range() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", &[1; 5000]).unwrap();
    let f = m.node("f").unwrap();
    let fh = u64_at(&m.device.call(Op::Open, f, 0, &u32s(&[2, 0])).unwrap(), 0);
    let far = [1 << 63, (1 << 63) - 1, u64::MAX, u64::MAX - 4096];
    for at in far {
        for (offset, len) in [(at, 1), (at, at), (1, at), (4096, u64::MAX - 4095), (at, 0)] {
            for mode in [0, 1, 3, 16, 17, u32::MAX] {
                let body = [u64s(&[fh, offset, len]), u32s(&[mode, 0])].concat();
                let told = odd(&m, Op::Fallocate as u32, f, &body);
                assert!(told.is_err() || mode > 1, "{offset} {len} {mode}");
                assert!(odd(&m, Op::Fallocate as u32, UNKNOWN, &body).is_err());
            }
        }
        for (node, from, to) in [(f, at, 0), (f, 0, at), (UNKNOWN, 0, 0)] {
            for len in [1, at] {
                let body = u64s(&[fh, from, node, fh, to, len, 0]);
                let copied = odd(&m, COPY_FILE_RANGE, f, &body);
                assert!(copied.map_or(0, |answer| u64_at(&answer, 0)) == 0);
            }
        }
        for whence in [3, 4, 99] {
            let body = [u64s(&[fh, at]), u32s(&[whence, 0])].concat();
            assert!(odd(&m, Op::Lseek as u32, f, &body).is_err());
            assert!(odd(&m, Op::Lseek as u32, UNKNOWN, &body).is_err());
        }
        let io = |size: u32| [u64s(&[fh, at]), u32s(&[size, 0, 0, 0, 0, 0])].concat();
        for size in [0, 1, u32::MAX] {
            let read = odd(&m, Op::Read as u32, f, &io(size));
            assert!(read.is_err() || read == Ok(vec![]), "{at} {size}: {read:?}");
        }
        assert!(odd(&m, Op::Write as u32, f, &[io(1), vec![9]].concat()).is_err());
        let size = [u32s(&[8, 0]), u64s(&[fh, at]), vec![0; 64]].concat();
        assert!(odd(&m, Op::Setattr as u32, f, &size).is_err(), "{at}");
    }
    // Nothing of something.
    let io = [u64s(&[fh, 100]), vec![0; 24]].concat();
    assert_eq!(odd(&m, Op::Read as u32, f, &io), Ok(vec![]));
    let _ = odd(&m, Op::Write as u32, f, &io);
    let none = [u64s(&[fh, 100, 0]), vec![0; 8]].concat();
    assert!(odd(&m, Op::Fallocate as u32, f, &none).is_err());
    assert_eq!(m.get("f").unwrap(), [1; 5000]);
    m.end();
}

/// Whole headers with anything behind them, but for the opcodes of which the
/// library asserts something and those without an answer.
#[test]
fn anything() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", b"text").unwrap();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let dropped = [
        Op::Forget as u64,
        Op::Setattr as u64,
        Op::Write as u64,
        Op::Destroy as u64,
        // SETXATTR, IOCTL, BATCH_FORGET.
        21,
        39,
        42,
    ];
    let mut last = 0;
    for _ in 0..2000 {
        let op = next() % 60;
        if dropped.contains(&op) {
            continue;
        }
        let len = (next() % 120) as usize;
        let body: Vec<u8> = (0..len).map(|_| (next() >> 32) as u8 & 0x4f).collect();
        let node = next() % 4;
        if let Ok(answer) = odd(&m, op as u32, node, &body) {
            last = answer.len().max(last);
        }
    }
    assert!(last > 0, "nothing succeeded");
    assert!(u64_at(&m.device.call(Op::Getattr, 1, 0, &[0; 16]).unwrap(), 16) == 1);
    // Whatever has become of "f".
    m.put("f", b"more").unwrap();
    assert_eq!(m.get("f").unwrap(), b"more");
    m.end();
}
