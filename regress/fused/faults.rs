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

//! Errors, time limits, and the death of each process.

#![forbid(unsafe_code)]

use crate::client::{fails, Client};
use crate::tree::Mode;
use crate::{errno, mount, scenarios, wait_until, Options};
use common::fs::FsError;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::process::Command;
use std::thread;
use std::time::Duration;

scenarios![no_quorum, more_writers_than_room];

fn brief() -> Options {
    Options {
        timeout: Duration::from_secs(1),
        ..Options::default()
    }
}

fn close(f: File) -> nix::Result<()> {
    nix::unistd::close(f.into_raw_fd())
}

/// O_DIRECT, where the system has it.
const UNPAGED: OFlag = OFlag::from_bits_retain(common::sys::file::O_DIRECT);

fn set_flags(f: &File, flags: OFlag) {
    nix::fcntl::fcntl(f, nix::fcntl::FcntlArg::F_SETFL(flags)).unwrap();
}

/// The kernel cuts a write where a page begins or 1 MiB is full, and hides the
/// error of a part behind those that it has.
#[test]
fn a_failed_part_of_a_write_is_reported() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let f = File::create(m.path("f")).unwrap();
    let other = File::create(m.path("f")).unwrap();
    let bytes = vec![1; 6 << 20];
    for round in 0..80 {
        let (offset, bytes) = match round % 4 {
            0 => (0, &bytes[..]),
            1 => (100, &bytes[..10_000]),
            2 => (100, &bytes[..3 << 20]),
            _ => (0, &bytes[..3 << 20]),
        };
        // Without pages Linux tries the part that failed once more, with them.
        let unpaged = round % 4 == 3;
        set_flags(&f, if unpaged { UNPAGED } else { OFlag::empty() });
        m.tree.set_mode(Mode::Refuse(FsError::NoSpace));
        let written = f.write_at(bytes, offset);
        // It has no error to tell, but waits for all parts.
        other.sync_all().unwrap();
        m.tree.set_mode(Mode::Apply);
        let n = written.as_ref().map_or(0, |n| *n);
        let results = [
            written.map(drop),
            f.write_all_at(&bytes[n..], offset + n as u64),
            f.sync_all(),
        ];
        let mut errors = results.into_iter().filter(|result| result.is_err());
        let error = errors
            .next()
            .unwrap_or_else(|| panic!("round {round}, {n} bytes"));
        assert_eq!(errno(error), Errno::ENOSPC);
        f.sync_all().unwrap();
    }
}

#[test]
fn a_closed_copy_takes_no_error() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let f = File::create(m.path("f")).unwrap();
    m.tree.set_mode(Mode::Refuse(FsError::NoSpace));
    f.write_all_at(b"bytes", 0).unwrap();
    // It closes all that it does not know.
    assert!(Command::new("true").status().unwrap().success());
    assert_eq!(close(f.try_clone().unwrap()), Err(Errno::ENOSPC));
    assert_eq!(errno(f.sync_all()), Errno::ENOSPC);
    f.sync_all().unwrap();
    close(f).unwrap();
}

#[test]
fn a_failed_write_is_reported_once() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", b"old bytes");
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(m.path("f"))
            .unwrap()
    };
    let (f, other) = (open(), open());

    m.tree.set_mode(Mode::Refuse(FsError::NoSpace));
    f.write_all_at(b"new", 0).unwrap();
    assert_eq!(errno(f.sync_all()), Errno::ENOSPC);
    f.sync_all().unwrap();
    other.sync_all().unwrap();

    m.tree.set_mode(Mode::Hold);
    f.write_all_at(b"new", 0).unwrap();
    m.tree.wait_held(1);
    m.tree.refuse_held(FsError::Io);
    wait_until("the error", || match f.write_at(b"N", 0) {
        Ok(_) => false,
        failed => {
            assert_eq!(errno(failed), Errno::EIO);
            true
        }
    });
    f.write_all_at(b"new", 0).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"new bytes");

    m.tree.set_mode(Mode::Hold);
    f.write_all_at(b"lost", 0).unwrap();
    m.tree.wait_held(1);
    thread::scope(|s| {
        let closing = s.spawn(|| close(f));
        m.tree.refuse_held(FsError::NoSpace);
        assert_eq!(closing.join().unwrap(), Err(Errno::ENOSPC));
    });
    // What the kernel believed is gone.
    assert_eq!(fs::read(m.path("f")).unwrap(), b"new bytes");
}

#[test]
fn a_synchronous_write_fails_itself() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", b"");
    let flags = OFlag::O_SYNC.bits();
    let mut options = OpenOptions::new();
    let f = options
        .write(true)
        .custom_flags(flags)
        .open(m.path("f"))
        .unwrap();
    let mut log = OpenOptions::new().append(true).open(m.path("f")).unwrap();
    m.tree.set_mode(Mode::Refuse(FsError::NoSpace));
    assert_eq!(errno(f.write_all_at(b"x", 0)), Errno::ENOSPC);
    assert_eq!(errno(log.write_all(b"x")), Errno::ENOSPC);
    f.sync_all().unwrap();
    close(f).unwrap();
    close(log).unwrap();
}

#[test]
fn queued_attributes_are_awaited_at_close() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let f = File::create(m.path("f")).unwrap();
    m.tree.set_mode(Mode::Hold);
    f.write_all_at(b"x", 0).unwrap();
    f.set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    m.tree.wait_held(2);
    thread::scope(|s| {
        let closing = s.spawn(|| close(f));
        m.tree.apply_held();
        closing.join().unwrap().unwrap();
    });
    assert_eq!(m.tree.attr("f").mode & 0o7777, 0o600);
    let mode = fs::metadata(m.path("f")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);

    let mut options = OpenOptions::new();
    let made = OFlag::O_CREAT.bits();
    options.read(true).custom_flags(made).mode(0o600);
    let f = options.open(m.path("g")).unwrap();
    m.tree.set_mode(Mode::Refuse(FsError::NotOwner));
    fs::set_permissions(m.path("g"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(close(f), Err(Errno::EPERM));
    let mode = fs::metadata(m.path("g")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

/// Nobody else would hear of a failure.
#[test]
fn attributes_are_queued_for_the_maker_alone() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let f = File::create(m.path("f")).unwrap();
    let beside = File::open(m.path("f")).unwrap();
    // What is queued is refused.
    m.tree.set_mode(Mode::Refuse(FsError::NotOwner));
    let chmod = |mode: u32| {
        fs::set_permissions(m.path("f"), fs::Permissions::from_mode(mode)).unwrap();
        m.tree.attr("f").mode & 0o7777 == mode
    };
    assert!(thread::scope(|s| s.spawn(|| chmod(0o600)).join().unwrap()));
    assert!(!chmod(0o640), "not queued");
    assert_eq!(close(f.try_clone().unwrap()), Err(Errno::EPERM));
    assert!(chmod(0o604), "after the close");
    assert_eq!(errno(f.sync_all()), Errno::EPERM);
    close(f).unwrap();
    assert!(chmod(0o660));
    close(beside).unwrap();
}

/// What was told to have failed in time does not come behind what is done now.
#[test]
fn a_late_write_is_not_overtaken() {
    let Some(m) = mount(brief()) else {
        return;
    };
    let f = File::create(m.path("f")).unwrap();
    let blocked = m.tree.block();
    let late = f.write_all_at(&vec![1; 1 << 20], 0);
    assert_eq!(errno(late), Errno::EIO);
    thread::scope(|s| {
        let next = s.spawn(|| {
            f.write_all_at(&[2; 10], 0).unwrap();
            f.set_len(100)
        });
        // Time enough for it to be asked for.
        for i in 0..50 {
            assert!(!m.path(&format!("absent{i}")).exists());
        }
        drop(blocked);
        next.join().unwrap().unwrap();
    });
    f.sync_all().unwrap();
    assert_eq!(m.tree.contents("f"), [&[2; 10][..], &[1; 90]].concat());
}

#[test]
fn nothing_hangs_when_raftd_is_silent() {
    let Some(m) = mount(brief()) else {
        return;
    };
    m.tree.create("f", &[1; 5000]);
    m.tree.create("victim", b"");
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    statvfs(&m.path("")).unwrap();
    fs::metadata(m.path("")).unwrap();
    m.tree.chmod("", 0o755);
    assert!(m.path("victim").exists());

    m.tree.set_mode(Mode::Silent);
    assert_eq!(errno(fs::metadata(m.path("unknown"))), Errno::EIO);
    assert_eq!(errno(File::open(m.path("f"))), Errno::EIO);
    statvfs(&m.path("")).unwrap();
    fs::metadata(m.path("")).unwrap();

    m.tree.set_mode(Mode::Mute);
    assert_eq!(errno(fs::create_dir(m.path("d"))), Errno::EIO);
    assert_eq!(errno(fs::remove_file(m.path("victim"))), Errno::EIO);
    assert_eq!(errno(File::create(m.path("new"))), Errno::EIO);
    // A small write waits for nobody; what became of it the next call tells.
    f.write_at(b"late", 0).unwrap();
    assert_eq!(errno(f.sync_all()), Errno::EIO);

    // It was only slow: what the kernel believes must become true again, and
    // what nobody waits for any more be let go.
    m.tree.speak();
    wait_until("the directory", || m.path("d").is_dir());
    wait_until("the file", || m.path("new").exists());
    wait_until("the victim goes", || !m.path("victim").exists());
    wait_until("the late write", || {
        fs::read(m.path("f")).unwrap().starts_with(b"late")
    });
    // The opens of "f" and "new" that came too late, and those just now.
    m.tree.wait_releases(3);
}

#[test]
fn a_write_that_is_never_applied_fails_in_time() {
    let Some(m) = mount(brief()) else {
        return;
    };
    m.tree.create("f", b"old");
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    m.tree.set_mode(Mode::Hold);
    f.write_all_at(b"new", 0).unwrap();
    m.tree.wait_held(1);
    assert_eq!(errno(f.sync_all()), Errno::EIO);
    f.write_all_at(b"neW", 0).unwrap();
    assert_eq!(close(f), Err(Errno::EIO));
    m.tree.apply_held();
    wait_until("the late writes", || {
        fs::read(m.path("f")).unwrap() == b"neW"
    });
}

fn no_quorum(c: &impl Client) {
    c.tree().create("f", b"text");
    assert_eq!(c.get("f").unwrap(), b"text");
    c.tree().quorum(false);
    wait_until("no quorum is known", || c.mkdir("d", 0o755).is_err());
    let _ = c.rmdir("d");
    assert_eq!(fails(c.mkdir("e", 0o755)), Errno::EROFS);
    assert_eq!(fails(c.unlink("f")), Errno::EROFS);
    assert_eq!(fails(c.put("f", b"")), Errno::EROFS);
    assert_eq!(c.stat("f").unwrap().size, 4);
    c.tree().quorum(true);
    wait_until("quorum is known", || c.mkdir("e", 0o755).is_ok());
    c.put("f", b"more").unwrap();
}

fn more_writers_than_room(c: &impl Client) {
    // 64 MiB that nobody accepts yet, and still everything else is answered.
    c.tree().create("other", b"x");
    let create = OFlag::O_WRONLY | OFlag::O_CREAT;
    let files: Vec<_> = (0..64)
        .map(|i| c.open(&format!("f{i}"), create, 0o644).unwrap())
        .collect();
    let blocked = c.tree().block();
    thread::scope(|s| {
        for (i, f) in files.iter().enumerate() {
            s.spawn(move || c.pwrite(f, &vec![i as u8; 1 << 20], 0).unwrap());
        }
        for _ in 0..100 {
            c.put("other", b"").unwrap();
            c.statfs().unwrap();
        }
        drop(blocked);
    });
    drop(files);
    for i in 0..64 {
        let bytes = c.tree().contents(&format!("f{i}"));
        assert!(bytes.len() == 1 << 20 && bytes.iter().all(|b| *b == i as u8));
    }
}

#[test]
fn a_killed_fused_leaves_no_hang() {
    let Some(mut m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", b"text");
    let f = File::open(m.path("f")).unwrap();
    m.tree.set_mode(Mode::Silent);
    thread::scope(|s| {
        let path = m.path("d");
        let waiting = s.spawn(move || fs::create_dir(path));
        m.tree.wait_asked("lookup", 2);
        m.kill();
        assert_eq!(errno(waiting.join().unwrap()), Errno::ECONNABORTED);
    });
    assert_eq!(errno(fs::metadata(m.path(""))), Errno::ENOTCONN);
    assert_eq!(errno(f.metadata()), Errno::ENOTCONN);
    m.unmount().unwrap();
    assert!(m.path("").is_dir());
}

#[test]
fn without_raftd_there_is_no_fused() {
    let Some(mut m) = mount(Options::default()) else {
        return;
    };
    m.tree.hang_up();
    assert_eq!(m.wait_exit().code(), Some(1));
    assert_eq!(errno(fs::metadata(m.path(""))), Errno::ENOTCONN);
}

#[test]
fn without_parent_there_is_no_fused() {
    let Some(mut m) = mount(Options::default()) else {
        return;
    };
    m.close_parent();
    assert_eq!(m.wait_exit().code(), Some(1));
}

#[test]
fn unmounting_ends_it_well() {
    let Some(mut m) = mount(Options::default()) else {
        return;
    };
    fs::write(m.path("f"), b"text").unwrap();
    m.unmount().unwrap();
    let status = m.wait_exit();
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(m.tree.contents("f"), b"text");
}
