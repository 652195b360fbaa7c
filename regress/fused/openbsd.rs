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

//! What is different on OpenBSD: its kernel keeps nothing, so fused does; its
//! handles are shared; and some of its errors mean more than they say.

#![forbid(unsafe_code)]

use crate::client::{fails, Client};
use crate::kernel::Op;
use crate::tree::Mode;
use crate::{openbsd, unmounted, wait_until, OpenBsd, Options};
use common::fs::FsError;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::thread;
use std::time::Duration;

const READ: OFlag = OFlag::O_RDONLY;
const WRITE: OFlag = OFlag::O_WRONLY;
const BOTH: OFlag = OFlag::O_RDWR;
const MEGABYTE: usize = 1 << 20;
/// What stdio(3) reads at once there.
const BLOCK: usize = 2048;

fn brief() -> Options {
    Options {
        timeout: Duration::from_secs(1),
        ..Options::default()
    }
}

fn asked(m: &OpenBsd) -> u64 {
    let all = ["lookup", "getattr", "open", "read", "readdir"];
    all.iter().map(|op| m.tree.asked(op)).sum()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 11)) as u8).collect()
}

/// Reads all of the file as stdio(3) does.
fn read_small(m: &OpenBsd, path: &str) -> Vec<u8> {
    let f = m.open(path, READ, 0).unwrap();
    let (mut bytes, mut buf) = (Vec::new(), [0; BLOCK]);
    loop {
        match m.read(&f, &mut buf).unwrap() {
            0 => break,
            n => bytes.extend_from_slice(&buf[..n]),
        }
    }
    m.close(f).unwrap();
    bytes
}

#[test]
fn what_is_known_is_not_asked_again() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.keep_vnodes();
    m.mkdir("d", 0o755).unwrap();
    m.put("d/f", b"text").unwrap();
    let first = m.stat("d/f").unwrap();
    let before = asked(&m);
    let sent = m.device.sent(Op::Getattr) + m.device.sent(Op::Lookup);
    for _ in 0..1000 {
        assert_eq!(m.stat("d/f").unwrap(), first);
    }
    assert_eq!(asked(&m), before, "requests to raftd");
    let sent = m.device.sent(Op::Getattr) + m.device.sent(Op::Lookup) - sent;
    assert_eq!(sent, 5000, "requests of the kernel");

    // That it is not there only raftd can know.
    for i in 1..=3 {
        assert_eq!(fails(m.stat("d/none")), Errno::ENOENT);
        assert_eq!(asked(&m), before + i);
    }
    m.end();
}

#[test]
fn small_reads_are_few_requests() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    let want = pattern(MEGABYTE);
    m.put("f", &want).unwrap();
    assert!(read_small(&m, "f") == want);
    assert_eq!(m.tree.asked("read"), 0, "there is a descriptor");

    // Without one.
    let keep = m.open("f", READ, 0).unwrap();
    m.tree.revoke("f");
    m.tree.wait_revoke_acks(1);
    let reads = m.device.sent(Op::Read);
    assert!(read_small(&m, "f") == want);
    assert_eq!(m.device.sent(Op::Read) - reads, 513);
    assert_eq!(m.tree.asked("read"), 9);
    m.close(keep).unwrap();

    // A small file is one request, and another for its end would be too many.
    m.put("small", &[7; 1000]).unwrap();
    assert_eq!(read_small(&m, "small"), [7; 1000]);
    assert_eq!(m.tree.asked("read"), 10);
    m.end();
}

#[test]
fn bytes_read_ahead_do_not_outlive_a_change() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", &[0; 100_000]).unwrap();
    let f = m.open("f", BOTH, 0).unwrap();
    let at = |offset: u64| {
        let mut byte = [0; BLOCK];
        let n = m.pread(&f, &mut byte, offset).unwrap();
        (n, byte[0])
    };
    // One read behind another: from there on all is read ahead.
    let ahead = || {
        at(0);
        at(BLOCK as u64);
    };
    for revoked in [false, true] {
        if revoked {
            m.tree.revoke("f");
            m.tree.wait_revoke_acks(1);
        }
        let mut last = at(4096).1;
        for _ in 0..40 {
            ahead();
            // By others, told of.
            last += 1;
            m.tree.write("f", 4096, &[last; 10]);
            wait_until("their bytes", || at(4096).1 == last);
            ahead();
            // By this mount, at once.
            last += 1;
            assert_eq!(m.pwrite(&f, &[last; 10], 4096), Ok(10));
            assert_eq!(at(4096), (BLOCK, last));
        }
        ahead();
        m.ftruncate(&f, 5000).unwrap();
        assert_eq!(at(4096), (904, last));
        ahead();
        m.tree.truncate("f", 4100);
        wait_until("their size", || at(4096) == (4, last));
        m.ftruncate(&f, 100_000).unwrap();
        assert_eq!(at(8192), (BLOCK, 0));
    }
    m.close(f).unwrap();
    m.end();
}

#[test]
fn what_is_kept_does_not_outlive_a_change() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.keep_vnodes();
    m.tree.create("a", b"a");
    m.tree.create("b", b"bb");
    for i in 0..200 {
        // Each but the last of a round is kept when it changes.
        let size = |name: &str| m.stat(name).map(|st| st.size);
        let mode = 0o600 + i % 8;
        m.tree.chmod("a", mode);
        wait_until("the mode", || m.stat("a").unwrap().mode & 0o7777 == mode);
        m.tree.write("a", 0, &vec![1; 10 + i as usize]);
        wait_until("the size", || size("a") == Ok(10 + u64::from(i)));
        assert_eq!(size("b"), Ok(2));
        m.tree.rename("a", "c");
        // First the new name, until the inode is well known again.
        wait_until("c is kept", || {
            let before = asked(&m);
            size("c") == Ok(10 + u64::from(i)) && asked(&m) == before
        });
        wait_until("a goes", || size("a") == Err(Errno::ENOENT));
        m.tree.rename("b", "c");
        wait_until("b replaces it", || size("c") == Ok(2));
        m.tree.unlink("c");
        wait_until("c goes", || size("c") == Err(Errno::ENOENT));
        m.tree.create("a", b"a");
        m.tree.create("b", b"bb");
        wait_until("both are back", || m.exists("a") && m.exists("b"));
    }
    m.end();
}

/// All that can be seen of these files is what the tree has.
fn compare(m: &OpenBsd, paths: &[String], step: &str) {
    // Whatever was told before, fused has read once it answers this.
    m.tree.revoke_and_wait("");
    for path in paths {
        if !m.tree.is_there(path) {
            assert_eq!(fails(m.stat(path)), Errno::ENOENT, "{step}: {path}");
            continue;
        }
        let (st, attr) = (m.stat(path).unwrap(), m.tree.attr(path));
        let told = (st.ino, st.size, st.mode, st.nlink);
        let is = (attr.ino.0, attr.size, attr.mode, u64::from(attr.nlink));
        assert_eq!(told, is, "{step}: {path}");
        assert_eq!(st.mtime.0, attr.mtime.sec, "{step}: {path}");
        assert_eq!(st.mtime.1, i64::from(attr.mtime.nsec), "{step}: {path}");
        if attr.is_file() {
            assert!(
                read_small(m, path) == m.tree.contents(path),
                "{step}: {path}"
            );
        }
    }
    for dir in ["", "d"] {
        let (st, attr) = (m.stat(dir).unwrap(), m.tree.attr(dir));
        assert_eq!(st.mtime.1, i64::from(attr.mtime.nsec), "{step}: {dir}");
    }
}

#[test]
fn whatever_is_done_by_whom() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.mkdir("d", 0o777).unwrap();
    let paths: Vec<String> = ["a", "b", "c", "d/a", "d/b"].map(String::from).to_vec();
    let mut held = Vec::new();
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut next = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    for i in 0..1500 {
        if i == 1000 {
            m.keep_vnodes();
        }
        let (path, to) = (&paths[next(5) as usize], &paths[next(5) as usize]);
        let there = m.tree.is_there(path);
        let (size, byte) = (next(9000), vec![i as u8; 1 + next(300) as usize]);
        let (what, ours) = (next(6), next(2) == 0);
        let step = format!("step {i}: {what} {path} {to} {size}, by us: {ours}");
        match (what, ours) {
            (0, true) if !there => m.put(path, &byte).unwrap(),
            (0, false) if !there => m.tree.create(path, &byte),
            _ if !there => continue,
            (0, _) if !m.tree.is_there(to) => m.link(path, to).unwrap(),
            (0 | 1, true) => {
                let f = m.open(path, BOTH, 0).unwrap();
                read_small(&m, path);
                m.pwrite(&f, &byte, size).unwrap();
                m.close(f).unwrap();
            }
            (0 | 1, false) => m.tree.write(path, size, &byte),
            (2, true) => m.truncate(path, size).unwrap(),
            (2, false) => m.tree.truncate(path, size),
            (3, true) => m.chmod(path, 0o600 + size as u32 % 0o100).unwrap(),
            (3, false) => m.tree.chmod(path, 0o600 + size as u32 % 0o100),
            (4, _) if m.tree.attr(path).ino == m.tree.attr_or(to).ino => continue,
            (4, true) => m.rename(path, to).unwrap(),
            (4, false) => m.tree.rename(path, to),
            (_, true) => m.unlink(path).unwrap(),
            (_, false) => m.tree.unlink(path),
        }
        compare(&m, &paths, &step);
        // What is open keeps what was read ahead.
        held.extend(m.open(path, READ, 0));
        held.truncate(3 * (i % 50).min(1));
    }
    drop(held);
    m.end();
}

#[test]
fn a_name_may_have_been_made_another_files() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.tree.create("conf", b"0000");
    let mut held = Vec::new();
    for i in 1..200 {
        held.push(m.open("conf", READ, 0).unwrap());
        let text = format!("{i:04}");
        m.tree.create("new", text.as_bytes());
        m.tree.rename("new", "conf");
        // It does not look again by itself when it opens an old one.
        wait_until("the new file", || {
            m.get("conf").is_ok_and(|bytes| bytes == text.as_bytes())
        });
    }
    drop(held);
    m.end();
}

#[test]
fn attributes_follow_what_this_mount_does() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.mkdir("d", 0o755).unwrap();
    let (mut dir, mut root) = (m.stat("d").unwrap(), m.stat("").unwrap());
    let mut changed = |what: &str, dir_changes: bool, root_changes: bool| {
        let (d, r) = (m.stat("d").unwrap(), m.stat("").unwrap());
        assert_eq!(d != dir, dir_changes, "{what}: d");
        assert_eq!(r != root, root_changes, "{what}: root");
        (dir, root) = (d, r);
    };
    m.put("d/f", b"1").unwrap();
    changed("create", true, false);
    m.mkdir("d/e", 0o755).unwrap();
    changed("mkdir", true, false);
    m.symlink("f", "d/s").unwrap();
    changed("symlink", true, false);
    m.link("d/f", "l").unwrap();
    changed("link", false, true);
    m.rename("d/s", "s").unwrap();
    changed("rename", true, true);
    m.unlink("s").unwrap();
    changed("unlink", false, true);
    m.rmdir("d/e").unwrap();
    changed("rmdir", true, false);
    m.put("d/f", b"more").unwrap();
    changed("write", false, false);
    m.end();
}

#[test]
fn a_lookup_that_fails_is_no_free_name() {
    let Some(m) = openbsd(brief()) else {
        return;
    };
    m.tree.create("known", b"text");
    assert_eq!(m.stat("known").unwrap().size, 4);
    m.tree.set_mode(Mode::Silent);
    // Made, it could be made twice.
    let create = WRITE | OFlag::O_CREAT;
    assert_eq!(fails(m.open("new", create, 0o644)), Errno::ENXIO);
    assert_eq!(fails(m.stat("new")), Errno::ENXIO);
    assert_eq!(fails(m.rename("known", "new")), Errno::ENXIO);
    assert_eq!(m.tree.asked("mknod") + m.tree.asked("rename"), 0);
    // What is kept is still told, in no time.
    assert_eq!(m.stat("known").unwrap().size, 4);
    assert_eq!(fails(m.open("known", READ, 0)), Errno::EIO);
}

#[test]
fn a_directory_that_is_gone_has_no_names() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.mkdir("d", 0o755).unwrap();
    let d = m.node("d").unwrap();
    m.rmdir("d").unwrap();
    let lookup = m.device.call(Op::Lookup, d, 0, b"x\0");
    assert_eq!(lookup, Err(Errno::ENOENT));
    m.end();
}

#[test]
fn handles_are_a_hint() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", &pattern(10_000)).unwrap();
    let node = m.node("f").unwrap();
    let mut bytes = [0; 3000];
    for fh in [0, 77, u64::MAX] {
        assert_eq!(m.read_node(node, fh, &mut bytes, 5000), Ok(3000));
        assert!(bytes == pattern(10_000)[5000..8000]);
        assert_eq!(m.write_node(node, fh, b"pager", 9000), Ok(5));
    }
    assert_eq!(m.get("f").unwrap()[9000..9005], *b"pager");

    // Opened twice in one way it is one handle, and closed with the last.
    let opens = m.device.sent(Op::Open);
    let (f, g) = (m.open("f", BOTH, 0).unwrap(), m.open("f", BOTH, 0).unwrap());
    let h = m.open("f", READ, 0).unwrap();
    assert_eq!(m.device.sent(Op::Open) - opens, 2);
    let releases = m.device.sent(Op::Release);
    m.close(f).unwrap();
    m.unlink("f").unwrap();
    m.pwrite(&g, b"still", 0).unwrap();
    m.pread_exact(&h, &mut bytes[..5], 0);
    assert_eq!(bytes[..5], *b"still");
    m.close(g).unwrap();
    assert_eq!(m.device.sent(Op::Release), releases);
    m.close(h).unwrap();
    assert_eq!(m.device.sent(Op::Release) - releases, 2);
    m.end();
}

#[test]
fn a_failed_write_is_told_to_whoever_could_have_made_it() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", b"old bytes").unwrap();
    let (f, other) = (m.open("f", BOTH, 0).unwrap(), m.open("f", BOTH, 0).unwrap());
    m.tree.set_mode(Mode::Refuse(FsError::NoSpace));
    assert_eq!(m.pwrite(&f, b"new", 0), Ok(3));
    // One handle, one error: the first who asks has it.
    assert_eq!(fails(m.fsync(&other)), Errno::ENOSPC);
    m.fsync(&f).unwrap();
    // Not through any handle: all writers.
    let node = m.node("f").unwrap();
    assert_eq!(m.write_node(node, u64::MAX, b"new", 0), Ok(3));
    wait_until("it is refused", || m.tree.asked("write") >= 3);
    assert_eq!(fails(m.close(f)), Errno::ENOSPC);
    m.close(other).unwrap();
    m.tree.set_mode(Mode::Apply);
    assert_eq!(m.get("f").unwrap(), b"old bytes");
    m.end();
}

#[test]
fn synchronous_if_the_first_is() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", b"old").unwrap();
    for (first, second) in [
        (WRITE | OFlag::O_SYNC, WRITE),
        (WRITE, WRITE | OFlag::O_SYNC),
    ] {
        let (f, g) = (
            m.open("f", first, 0).unwrap(),
            m.open("f", second, 0).unwrap(),
        );
        m.tree.set_mode(Mode::Refuse(FsError::NoSpace));
        if first.contains(OFlag::O_SYNC) {
            assert_eq!(m.pwrite(&g, b"new", 0), Err(Errno::ENOSPC));
        } else {
            assert_eq!(m.pwrite(&g, b"new", 0), Ok(3));
            assert_eq!(m.fsync(&g), Err(Errno::ENOSPC));
        }
        m.tree.set_mode(Mode::Apply);
        m.close(f).unwrap();
        m.close(g).unwrap();
    }
    m.end();
}

#[test]
fn forgotten_and_still_used() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.mkdir("d", 0o755).unwrap();
    m.put("d/f", b"text").unwrap();
    let (d, f) = (m.node("d").unwrap(), m.node("d/f").unwrap());
    m.link("d/f", "l").unwrap();
    m.reclaim();
    // A link that was counted would be kept for ever.
    for i in 0..3 {
        let before = m.tree.asked("getattr");
        assert_eq!(m.getattr(f).unwrap().size, 4);
        assert_eq!(m.tree.asked("getattr"), before + 1, "round {i}");
    }
    assert_eq!(m.getattr(d).unwrap().mode & 0o7777, 0o755);
    m.tree.write("d/f", 0, b"longer");
    wait_until("the size", || m.getattr(f).unwrap().size == 6);
    // Looked up again it is kept again.
    assert_eq!(m.stat("d/f").unwrap().size, 6);
    let before = m.tree.asked("getattr");
    assert_eq!(m.getattr(f).unwrap().nlink, 2);
    assert_eq!(m.tree.asked("getattr"), before);
    // More than was ever looked up, and of nothing.
    m.device.forget(f, u64::MAX);
    m.device.forget(12345, 1);
    m.device.forget(1, 99);
    assert_eq!(m.get("d/f").unwrap(), b"longer");
    m.end();
}

#[test]
fn privileges_go_with_a_write() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", b"x").unwrap();
    m.chmod("f", 0o6777).unwrap();
    assert_eq!(m.stat("f").unwrap().mode & 0o7777, 0o6777);
    m.played.uid = 1000;
    let f = m.open("f", WRITE, 0).unwrap();
    m.pwrite(&f, b"y", 0).unwrap();
    assert_eq!(m.fstat(&f).unwrap().mode & 0o7777, 0o777);
    m.close(f).unwrap();
    m.end();
}

#[test]
fn an_append_is_at_the_end_that_is_known() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.tree.create("log", b"one\n");
    let f = m.open("log", WRITE | OFlag::O_APPEND, 0).unwrap();
    let mut want = b"one\n".to_vec();
    for i in 0..50 {
        let theirs = format!("theirs {i}\n");
        m.tree.write("log", want.len() as u64, theirs.as_bytes());
        want.extend(theirs.as_bytes());
        wait_until("the new end", || {
            m.fstat(&f).unwrap().size == want.len() as u64
        });
        let ours = format!("ours {i}\n");
        assert_eq!(m.write(&f, ours.as_bytes()), Ok(ours.len()));
        want.extend(ours.as_bytes());
        assert_eq!(m.fstat(&f).unwrap().size, want.len() as u64);
    }
    m.close(f).unwrap();
    assert!(m.tree.contents("log") == want);
    m.end();
}

#[test]
fn a_dead_fused_is_told_to_all() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", b"text").unwrap();
    let f = m.open("f", READ, 0).unwrap();
    m.tree.set_mode(Mode::Silent);
    let (played, fused) = (&m.played, &mut m.fused);
    thread::scope(|s| {
        let waiting = s.spawn(|| played.stat("unknown"));
        wait_until("it is asked", || played.tree.asked("lookup") >= 1);
        fused.kill();
        assert_eq!(fails(waiting.join().unwrap()), Errno::ENXIO);
    });
    assert_eq!(fails(m.fstat(&f)), Errno::ENXIO);
    assert_eq!(fails(m.statfs()), Errno::ENXIO);
}

#[test]
fn unmounted_while_writes_are_under_way() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    let f = m.open("f", BOTH | OFlag::O_CREAT, 0o644).unwrap();
    m.tree.set_mode(Mode::Hold);
    m.pwrite(&f, b"late", 0).unwrap();
    m.tree.wait_held(1);
    // umount -f: the last close and DESTROY, with nobody to wait.
    drop(f);
    m.played.unmount().unwrap();
    m.tree.apply_held();
    assert_eq!(m.fused.wait_exit().code(), Some(0));
    assert_eq!(m.tree.contents("f"), b"late");
}

/// Fixed parts as 7.8 and 7.9 have them: 184 bytes that begin with a pointer
/// which is 0, then a 19.
#[test]
fn a_kernel_that_is_too_old() {
    let Some((mut fused, device)) = unmounted() else {
        return;
    };
    let mut request = vec![0; 184];
    request[20] = 19;
    device.send(&request);
    assert_eq!(fused.wait_exit().code(), Some(1));
    let log = fused.log();
    assert!(log.contains("FUSE device: unknown protocol"), "{log}");
}
