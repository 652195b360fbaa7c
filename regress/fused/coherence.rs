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

//! Changes by others reach the kernel's caches, however busy they are.

#![forbid(unsafe_code)]

use crate::tree::Mode;
use crate::{mount, wait_until, Options};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

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

#[test]
fn open_sees_what_was_written_before() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    for size in [100, 10_000] {
        let name = format!("f{size}");
        m.tree.create(&name, &vec![0; size]);
        for i in 1..200u8 {
            m.tree.write(&name, 0, &vec![i; size]);
            let bytes = fs::read(m.path(&name)).unwrap();
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

#[test]
fn an_open_file_changes_under_busy_readers() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", &[0; 20_000]);
    let f = File::open(m.path("f")).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..3 {
            busy(s, &stop, || {
                let mut bytes = vec![0; 20_000];
                // Short once the file is.
                f.read_at(&mut bytes, 0).unwrap();
                f.metadata().unwrap();
            });
        }
        let _stop = Stop(&stop);
        for i in 1..100u8 {
            m.tree.write("f", 5000, &[i; 9000]);
            wait_until("the new bytes", || {
                let mut bytes = vec![0; 9000];
                f.read_exact_at(&mut bytes, 5000).unwrap();
                bytes.iter().all(|b| *b == i)
            });
        }
        m.tree.truncate("f", 3);
        wait_until("the new size", || f.metadata().unwrap().len() == 3);
    });
    assert_eq!(fs::read(m.path("f")).unwrap(), [0, 0, 0]);
}

#[test]
fn names_come_and_go_under_busy_lookups() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            busy(s, &stop, || {
                let _ = fs::metadata(m.path("a"));
                let _ = fs::metadata(m.path("b"));
                let _ = fs::read_dir(m.path("")).unwrap().count();
            });
        }
        let _stop = Stop(&stop);
        let listed = |name: &str| {
            let mut names = fs::read_dir(m.path("")).unwrap();
            names.any(|e| e.unwrap().file_name() == name)
        };
        for i in 0..100 {
            let text = i.to_string();
            m.tree.create("a", text.as_bytes());
            wait_until("a appears", || m.path("a").exists());
            wait_until("a is listed", || listed("a"));
            m.tree.rename("a", "b");
            wait_until("a goes", || !m.path("a").exists() && !listed("a"));
            wait_until("b appears", || {
                fs::read(m.path("b")).is_ok_and(|b| b == text.as_bytes())
            });
            wait_until("b is listed", || listed("b"));
            m.tree.unlink("b");
            wait_until("b goes", || !m.path("b").exists() && !listed("b"));
        }
    });
}

#[test]
fn attributes_change_while_the_kernel_instantiates() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let names: Vec<String> = (0..2000).map(|i| format!("f{i}")).collect();
    names.iter().for_each(|name| m.tree.create(name, b"x"));
    thread::scope(|s| {
        let names = &names;
        for t in 0..3 {
            let m = &m;
            s.spawn(move || {
                for name in names.iter().skip(t) {
                    fs::metadata(m.path(name)).unwrap();
                }
            });
        }
        for name in names {
            m.tree.chmod(name, 0o600);
        }
    });
    for name in &names {
        wait_until("the new mode", || {
            fs::metadata(m.path(name)).unwrap().mode() & 0o7777 == 0o600
        });
    }
}

#[test]
fn everything_is_dropped_at_once() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("a", b"a");
    m.tree.create("b", b"b");
    let f = File::open(m.path("a")).unwrap();
    let read = |name: &str| fs::read(m.path(name)).unwrap_or_default();
    let count = || fs::read_dir(m.path("")).unwrap().count();
    assert_eq!(
        (read("a"), read("b"), count()),
        (b"a".to_vec(), b"b".to_vec(), 2)
    );
    assert!(!m.path("c").exists());

    m.tree.write_quietly("a", 0, b"A");
    m.tree.rename_quietly("b", "d");
    m.tree.create_quietly("c", b"c");
    m.tree.inval_all();
    wait_until("new bytes", || {
        let mut byte = [0];
        f.read_exact_at(&mut byte, 0).unwrap();
        byte == *b"A"
    });
    wait_until("the old name goes", || !m.path("b").exists());
    wait_until("new names", || read("c") == b"c" && read("d") == b"b");
    wait_until("a new listing", || count() == 3);
}

#[test]
fn reads_wait_for_pending_writes() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", &[b'o'; 10_000]);
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    m.tree.set_mode(Mode::Hold);
    // Neither is a whole page, so the kernel has to read what is around them.
    f.write_all_at(b"new", 100).unwrap();
    f.write_all_at(b"more", 10_000).unwrap();
    m.tree.wait_held(2);
    thread::scope(|s| {
        let reader = s.spawn(|| fs::read(m.path("f")).unwrap());
        let stat = s.spawn(|| f.metadata().unwrap().len());
        m.tree.wait_asked("open", 2);
        m.tree.apply_held();
        let bytes = reader.join().unwrap();
        assert_eq!(&bytes[99..104], b"onewo");
        assert_eq!(&bytes[9999..], b"omore");
        assert_eq!(stat.join().unwrap(), 10_004);
    });
}

#[test]
fn a_read_beside_a_pending_write_is_not_cut_short() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    // With a descriptor, so that fused reads the file itself.
    m.tree.create("f", &[b'o'; 5000]);
    let mut f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    m.tree.set_mode(Mode::Hold);
    f.write_all_at(b"far", 50_000).unwrap();
    m.tree.wait_held(1);
    thread::scope(|s| {
        let reader = s.spawn(|| {
            let mut bytes = vec![1; 30_000];
            f.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        });
        m.tree.apply_held();
        let bytes = reader.join().unwrap();
        assert!(bytes[..5000].iter().all(|b| *b == b'o'));
        assert!(bytes[5000..].iter().all(|b| *b == 0));
    });
    assert_eq!(f.seek(SeekFrom::End(0)).unwrap(), 50_003);
    assert_eq!(fs::read(m.path("f")).unwrap().len(), 50_003);
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

#[test]
fn a_backing_file_is_given_back() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", &[1; 9000]);
    let f = File::open(m.path("f")).unwrap();
    let mut bytes = [0; 9000];
    f.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(m.tree.asked("read"), 0);
    m.tree.revoke("f");
    m.tree.wait_revoke_acks(1);
    m.tree.write("f", 0, &[2; 9000]);
    wait_until("the new bytes", || {
        f.read_exact_at(&mut bytes, 0).unwrap();
        bytes.iter().all(|b| *b == 2)
    });
    assert!(m.tree.asked("read") > 0, "read through raftd");
    // Also what was never there.
    m.tree.revoke("");
    m.tree.wait_revoke_acks(2);
}

#[test]
fn small_files_grow_into_backing_files() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(m.path("f"))
        .unwrap();
    let mut want = Vec::new();
    for i in 0..40u8 {
        f.write_all_at(&[i; 100], want.len() as u64).unwrap();
        want.extend([i; 100]);
        let g = File::open(m.path("f")).unwrap();
        let mut bytes = vec![0; want.len()];
        g.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == want, "{} bytes", want.len());
    }
}

#[test]
fn listing_beside_pending_changes() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("quiet", b"x");
    let f = File::create(m.path("pending")).unwrap();
    m.tree.set_mode(Mode::Hold);
    f.write_all_at(b"12345", 0).unwrap();
    m.tree.wait_held(1);
    // Does not wait for them, and has their numbers.
    let names = || -> Vec<(String, u64)> {
        let dir = nix::dir::Dir::open(
            &m.path(""),
            nix::fcntl::OFlag::O_RDONLY,
            nix::sys::stat::Mode::empty(),
        );
        let mut names: Vec<_> = dir
            .unwrap()
            .into_iter()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().to_str().unwrap().to_string(), e.ino()))
            .filter(|(name, _)| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    };
    let want = |name: &str| (name.to_string(), m.tree.attr(name).ino.0);
    assert_eq!(names(), [want("pending"), want("quiet")]);
    m.tree.apply_held();
    assert_eq!(fs::metadata(m.path("pending")).unwrap().len(), 5);
    assert_eq!(names(), [want("pending"), want("quiet")]);
}
