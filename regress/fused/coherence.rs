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

//! Changes by others reach whoever keeps what they change, however busy he is:
//! one kernel itself, and fused for the other.

#![forbid(unsafe_code)]

use crate::client::Client;
use crate::tree::Mode;
use crate::{mount, scenarios, wait_until, Options};
use nix::fcntl::OFlag;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const READ: OFlag = OFlag::O_RDONLY;
const BOTH: OFlag = OFlag::O_RDWR;

scenarios![
    open_sees_what_was_written_before,
    an_open_file_changes_under_busy_readers,
    names_come_and_go_under_busy_lookups,
    attributes_change_while_they_are_looked_up,
    everything_is_dropped_at_once,
    reads_wait_for_pending_writes,
    a_read_beside_a_pending_write_is_not_cut_short,
    a_backing_file_is_given_back,
    small_files_grow_into_backing_files,
    listing_beside_pending_changes,
];

/// Ends the busy threads, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does it again and again.
fn busy<'s>(s: &'s thread::Scope<'s, '_>, stop: &'s AtomicBool, f: impl Fn() + Send + 's) {
    s.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            f();
        }
    });
}

fn open_sees_what_was_written_before(c: &impl Client) {
    for size in [100, 10_000] {
        let name = format!("f{size}");
        c.tree().create(&name, &vec![0; size]);
        for i in 1..200u8 {
            c.tree().write(&name, 0, &vec![i; size]);
            let bytes = c.get(&name).unwrap();
            assert!(bytes == vec![i; size], "round {i}: {:?}", bytes.first());
        }
    }
}

#[test]
fn open_names_what_the_name_means_now() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("conf", b"0000");
    // Keeps the replaced inode alive, so that opening it would succeed.
    let mut held = Vec::new();
    for i in 1..200 {
        held.push(File::open(m.path("conf")).unwrap());
        let text = format!("{i:04}");
        m.tree.create("new", text.as_bytes());
        m.tree.rename("new", "conf");
        assert_eq!(fs::read(m.path("conf")).unwrap(), text.as_bytes());
    }
}

fn an_open_file_changes_under_busy_readers(c: &impl Client) {
    c.tree().create("f", &[0; 20_000]);
    let f = c.open("f", READ, 0).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..3 {
            busy(s, &stop, || {
                let mut bytes = vec![0; 20_000];
                // Short once the file is.
                c.pread(&f, &mut bytes, 0).unwrap();
                c.fstat(&f).unwrap();
            });
        }
        let _stop = Stop(&stop);
        for i in 1..100u8 {
            c.tree().write("f", 5000, &[i; 9000]);
            wait_until("the new bytes", || {
                let mut bytes = vec![0; 9000];
                c.pread_exact(&f, &mut bytes, 5000);
                bytes.iter().all(|b| *b == i)
            });
        }
        c.tree().truncate("f", 3);
        wait_until("the new size", || c.fstat(&f).unwrap().size == 3);
    });
    assert_eq!(c.get("f").unwrap(), [0, 0, 0]);
}

fn names_come_and_go_under_busy_lookups(c: &impl Client) {
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            busy(s, &stop, || {
                let _ = c.stat("a");
                let _ = c.stat("b");
                c.names("");
            });
        }
        let _stop = Stop(&stop);
        let listed = |name: &str| {
            let names = c.names("");
            names.iter().any(|listed| listed == name)
        };
        for i in 0..100 {
            let text = i.to_string();
            c.tree().create("a", text.as_bytes());
            wait_until("a appears", || c.exists("a"));
            wait_until("a is listed", || listed("a"));
            c.tree().rename("a", "b");
            wait_until("a goes", || !c.exists("a") && !listed("a"));
            wait_until("b appears", || {
                c.get("b").is_ok_and(|b| b == text.as_bytes())
            });
            wait_until("b is listed", || listed("b"));
            c.tree().unlink("b");
            wait_until("b goes", || !c.exists("b") && !listed("b"));
        }
    });
}

fn attributes_change_while_they_are_looked_up(c: &impl Client) {
    let names: Vec<String> = (0..2000).map(|i| format!("f{i}")).collect();
    names.iter().for_each(|name| c.tree().create(name, b"x"));
    thread::scope(|s| {
        let names = &names;
        for t in 0..3 {
            s.spawn(move || {
                for name in names.iter().skip(t) {
                    c.stat(name).unwrap();
                }
            });
        }
        for name in names {
            c.tree().chmod(name, 0o600);
        }
    });
    for name in &names {
        wait_until("the new mode", || {
            c.stat(name).unwrap().mode & 0o7777 == 0o600
        });
    }
}

fn everything_is_dropped_at_once(c: &impl Client) {
    c.tree().create("a", b"a");
    c.tree().create("b", b"b");
    let f = c.open("a", READ, 0).unwrap();
    let read = |name: &str| c.get(name).unwrap_or_default();
    let count = || c.names("").len();
    assert_eq!(
        (read("a"), read("b"), count()),
        (b"a".to_vec(), b"b".to_vec(), 2)
    );
    assert!(!c.exists("c"));

    c.tree().write_quietly("a", 0, b"A");
    c.tree().rename_quietly("b", "d");
    c.tree().create_quietly("c", b"c");
    c.tree().inval_all();
    wait_until("new bytes", || {
        let mut byte = [0];
        c.pread_exact(&f, &mut byte, 0);
        byte == *b"A"
    });
    wait_until("the old name goes", || !c.exists("b"));
    wait_until("new names", || read("c") == b"c" && read("d") == b"b");
    wait_until("a new listing", || count() == 3);
}

fn reads_wait_for_pending_writes(c: &impl Client) {
    c.tree().create("f", &[b'o'; 10_000]);
    let f = c.open("f", BOTH, 0).unwrap();
    c.tree().set_mode(Mode::Hold);
    // Neither is a whole page, so the kernel has to read what is around them.
    c.pwrite(&f, b"new", 100).unwrap();
    c.pwrite(&f, b"more", 10_000).unwrap();
    c.tree().wait_held(2);
    let asked = || c.tree().asked("lookup") + c.tree().asked("open");
    let before = asked();
    thread::scope(|s| {
        let reader = s.spawn(|| c.get("f").unwrap());
        let stat = s.spawn(|| c.fstat(&f).unwrap().size);
        wait_until("it is asked for", || asked() > before);
        c.tree().apply_held();
        let bytes = reader.join().unwrap();
        assert_eq!(&bytes[99..104], b"onewo");
        assert_eq!(&bytes[9999..], b"omore");
        assert_eq!(stat.join().unwrap(), 10_004);
    });
}

fn a_read_beside_a_pending_write_is_not_cut_short(c: &impl Client) {
    // With a descriptor, so that fused reads the file itself.
    c.tree().create("f", &[b'o'; 5000]);
    let f = c.open("f", BOTH, 0).unwrap();
    c.tree().set_mode(Mode::Hold);
    c.pwrite(&f, b"far", 50_000).unwrap();
    c.tree().wait_held(1);
    thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut bytes = vec![1; 30_000];
            c.pread_exact(&f, &mut bytes, 0);
            bytes
        });
        // raftd would let the write wait for company.
        wait_until("raftd hears of it", || c.tree().asked("fsync") > 0);
        c.tree().apply_held();
        let bytes = reader.join().unwrap();
        assert!(bytes[..5000].iter().all(|b| *b == b'o'));
        assert!(bytes[5000..].iter().all(|b| *b == 0));
    });
    assert_eq!(c.fstat(&f).unwrap().size, 50_003);
    assert_eq!(c.get("f").unwrap().len(), 50_003);
}

#[test]
fn appends_go_to_the_end_wherever_it_is() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("log", b"one\n");
    let reader = File::open(m.path("log")).unwrap();
    let mut f = OpenOptions::new().append(true).open(m.path("log")).unwrap();
    let mut want = b"one\n".to_vec();
    for i in 0..50 {
        // Unknown to this kernel when it writes.
        let theirs = format!("theirs {i}\n");
        m.tree
            .write_quietly("log", want.len() as u64, theirs.as_bytes());
        want.extend(theirs.as_bytes());
        let ours = format!("ours {i}\n");
        f.write_all(ours.as_bytes()).unwrap();
        want.extend(ours.as_bytes());
        assert!(m.tree.contents("log") == want);
        let size = want.len();
        wait_until("the new size", || {
            reader.metadata().unwrap().len() == size as u64
        });
        let mut bytes = vec![0; size];
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == want, "round {i}");
    }
}

fn a_backing_file_is_given_back(c: &impl Client) {
    c.tree().create("f", &[1; 9000]);
    let f = c.open("f", READ, 0).unwrap();
    let mut bytes = [0; 9000];
    c.pread_exact(&f, &mut bytes, 0);
    assert_eq!(c.tree().asked("read"), 0);
    c.tree().revoke("f");
    c.tree().wait_revoke_acks(1);
    c.tree().write("f", 0, &[2; 9000]);
    wait_until("the new bytes", || {
        c.pread_exact(&f, &mut bytes, 0);
        bytes.iter().all(|b| *b == 2)
    });
    assert!(c.tree().asked("read") > 0, "read through raftd");
    // Also what was never there.
    c.tree().revoke("");
    c.tree().wait_revoke_acks(2);
}

fn small_files_grow_into_backing_files(c: &impl Client) {
    let f = c
        .open("f", BOTH | OFlag::O_CREAT | OFlag::O_TRUNC, 0o644)
        .unwrap();
    let mut want = Vec::new();
    for i in 0..40u8 {
        c.pwrite(&f, &[i; 100], want.len() as u64).unwrap();
        want.extend([i; 100]);
        let g = c.open("f", READ, 0).unwrap();
        let mut bytes = vec![0; want.len()];
        c.pread_exact(&g, &mut bytes, 0);
        assert!(bytes == want, "{} bytes", want.len());
    }
}

fn listing_beside_pending_changes(c: &impl Client) {
    c.tree().create("quiet", b"x");
    let f = c.open("pending", BOTH | OFlag::O_CREAT, 0o644).unwrap();
    c.tree().set_mode(Mode::Hold);
    c.pwrite(&f, b"12345", 0).unwrap();
    c.tree().wait_held(1);
    // Does not wait for them, and has their numbers.
    let names = || -> Vec<(String, u64)> {
        let mut names = c.readdir("").unwrap();
        names.retain(|(name, _)| !name.starts_with('.'));
        names.sort();
        names
    };
    let want = |name: &str| (name.to_string(), c.tree().attr(name).ino.0);
    assert_eq!(names(), [want("pending"), want("quiet")]);
    c.tree().apply_held();
    assert_eq!(c.stat("pending").unwrap().size, 5);
    assert_eq!(names(), [want("pending"), want("quiet")]);
}
