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

//! What programs do with files.

#![forbid(unsafe_code)]

use crate::{errno, mount, Options};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{mknod, Mode, SFlag};
use nix::sys::statvfs::statvfs;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{chown, symlink, FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::thread;
use std::time::{Duration, SystemTime};

#[test]
fn files() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let path = m.path("f");
    fs::write(&path, b"hello").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello");
    assert_eq!(m.tree.contents("f"), b"hello");
    assert_eq!(fs::metadata(&path).unwrap().len(), 5);

    let mut f = OpenOptions::new().append(true).open(&path).unwrap();
    f.write_all(b", world").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"hello, world");

    let mut f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    f.seek(SeekFrom::Start(7)).unwrap();
    f.write_all(b"there").unwrap();
    f.set_len(9).unwrap();
    f.rewind().unwrap();
    let mut text = String::new();
    f.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello, th");
    f.set_len(5000).unwrap();
    assert_eq!(fs::read(&path).unwrap().len(), 5000);
    f.sync_all().unwrap();

    fs::write(&path, b"short").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"short");

    let excl = OpenOptions::new().write(true).create_new(true).open(&path);
    assert_eq!(errno(excl), Errno::EEXIST);
    assert_eq!(errno(File::open(m.path("none"))), Errno::ENOENT);
    drop(f);

    let f = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(errno(File::open(&path)), Errno::ENOENT);
    let mut bytes = [0; 5];
    f.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"short");
    assert_eq!(f.metadata().unwrap().nlink(), 0);
}

#[test]
fn large_and_sparse_files() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let bytes: Vec<u8> = (0..8u32 << 20).map(|i| (i ^ (i >> 9)) as u8).collect();
    let path = m.path("large");
    fs::write(&path, &bytes).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    assert!(m.tree.contents("large") == bytes);

    // Past the kernel's pages too, where it has any.
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
            .open(&path)
            .unwrap();
        let mut some = vec![0; 1 << 20];
        direct.read_exact_at(&mut some, 3 << 20).unwrap();
        assert!(some == bytes[3 << 20..4 << 20]);
    }

    let sparse = File::create(m.path("sparse")).unwrap();
    sparse.write_all_at(b"end", 64 << 30).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    let sparse = File::open(m.path("sparse")).unwrap();
    let mut end = [1; 6];
    sparse.read_exact_at(&mut end, (64 << 30) - 3).unwrap();
    assert_eq!(&end, b"\0\0\0end");

    let f = File::create(m.path("far")).unwrap();
    assert_eq!(errno(f.write_at(b"x", 1 << 62)), Errno::EFBIG);
}

#[test]
fn names_and_directories() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    fs::create_dir(m.path("d")).unwrap();
    for i in 0..1500 {
        fs::write(m.path(&format!("d/{i}")), b"").unwrap();
    }
    let list = |name: &str| -> BTreeSet<String> {
        fs::read_dir(m.path(name))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let want: BTreeSet<String> = (0..1500).map(|i| i.to_string()).collect();
    assert_eq!(list("d"), want);
    assert_eq!(list("d"), want);
    fs::remove_file(m.path("d/7")).unwrap();
    fs::rename(m.path("d/8"), m.path("d/x")).unwrap();
    let mut want = want;
    want.remove("7");
    want.remove("8");
    want.insert("x".into());
    assert_eq!(list("d"), want);

    assert_eq!(errno(fs::remove_dir(m.path("d"))), Errno::ENOTEMPTY);
    assert_eq!(errno(fs::create_dir(m.path("d"))), Errno::EEXIST);
    fs::create_dir(m.path("e")).unwrap();
    assert_eq!(fs::metadata(m.path("")).unwrap().nlink(), 4);
    fs::rename(m.path("e"), m.path("d/e")).unwrap();
    assert_eq!(fs::metadata(m.path("")).unwrap().nlink(), 3);
    fs::remove_dir(m.path("d/e")).unwrap();

    let long = "n".repeat(255);
    fs::write(m.path(&long), b"long").unwrap();
    assert_eq!(fs::read(m.path(&long)).unwrap(), b"long");
    let longer = m.path(&"n".repeat(256));
    assert_eq!(errno(fs::write(longer, b"")), Errno::ENAMETOOLONG);
    let odd = std::ffi::OsString::from_vec(vec![b'a', 0xff, b'\n']);
    fs::write(m.path("").join(&odd), b"odd").unwrap();
    assert!(fs::read_dir(m.path(""))
        .unwrap()
        .any(|e| e.unwrap().file_name() == odd));
}

#[test]
fn renames_and_links() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let (a, b) = (m.path("a"), m.path("b"));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{renameat2, RenameFlags, AT_FDCWD};
        let rename = |flags| renameat2(AT_FDCWD, &a, AT_FDCWD, &b, flags);
        assert_eq!(rename(RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
        assert_eq!(rename(RenameFlags::RENAME_WHITEOUT), Err(Errno::EINVAL));
        rename(RenameFlags::RENAME_EXCHANGE).unwrap();
        assert_eq!(fs::read(&a).unwrap(), b"b");
        assert_eq!(fs::read(&b).unwrap(), b"a");
        rename(RenameFlags::RENAME_EXCHANGE).unwrap();
    }
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"a");
    assert!(!a.exists());

    fs::hard_link(&b, &a).unwrap();
    assert_eq!(fs::metadata(&b).unwrap().nlink(), 2);
    fs::write(&a, b"both").unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"both");
    fs::remove_file(&a).unwrap();
    assert_eq!(fs::metadata(&b).unwrap().nlink(), 1);

    symlink("b", m.path("l")).unwrap();
    assert_eq!(fs::read_link(m.path("l")).unwrap().to_str(), Some("b"));
    assert_eq!(fs::read(m.path("l")).unwrap(), b"both");
    mknod(
        &m.path("fifo"),
        SFlag::S_IFIFO,
        Mode::from_bits_truncate(0o600),
        0,
    )
    .unwrap();
    assert!(fs::metadata(m.path("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn attributes() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let path = m.path("f");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4711);
    chown(&path, Some(12), Some(34)).unwrap();
    let st = fs::metadata(&path).unwrap();
    assert_eq!((st.uid(), st.gid()), (12, 34));
    assert_eq!(st.mode() & 0o7777, 0o711, "chown takes away set-user-id");

    let before = SystemTime::UNIX_EPOCH - Duration::new(100, 250_000_000);
    let after = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    let times = fs::FileTimes::new()
        .set_accessed(before)
        .set_modified(after);
    File::open(&path).unwrap().set_times(times).unwrap();
    let st = fs::metadata(&path).unwrap();
    assert_eq!(st.accessed().unwrap(), before);
    assert_eq!(st.modified().unwrap(), after);
    let attr = m.tree.attr("f");
    assert_eq!((attr.atime.sec, attr.atime.nsec), (-101, 750_000_000));

    let vfs = statvfs(&m.path("")).unwrap();
    assert_eq!(vfs.blocks() * vfs.fragment_size(), 1 << 30);
    assert_eq!((vfs.files(), vfs.name_max()), (1000, 255));

    let f = File::open(&path).unwrap();
    let lock = Flock::lock(f, FlockArg::LockExclusiveNonblock).unwrap();
    let g = File::open(&path).unwrap();
    let second = Flock::lock(g, FlockArg::LockExclusiveNonblock);
    assert_eq!(second.unwrap_err().1, Errno::EWOULDBLOCK);
    drop(lock);
}

#[test]
fn a_write_takes_away_privileges_at_once() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let path = m.path("f");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    // Somebody who is not root.
    let status = std::process::Command::new("setpriv")
        .args([
            "--reuid=_dfsd",
            "--clear-groups",
            "sh",
            "-c",
            "echo y >> \"$0\"",
        ])
        .arg(&path)
        .status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(e) => return println!("SKIPPED: setpriv: {e}"),
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn many_at_once() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    thread::scope(|s| {
        for t in 0..16 {
            let m = &m;
            s.spawn(move || {
                let dir = m.path(&format!("t{t}"));
                fs::create_dir(&dir).unwrap();
                for i in 0..40usize {
                    let bytes = vec![(t * 16 + i) as u8; 100 + i * 700];
                    let path = dir.join(i.to_string());
                    fs::write(&path, &bytes).unwrap();
                    assert!(fs::read(&path).unwrap() == bytes);
                    assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64);
                }
                assert_eq!(fs::read_dir(&dir).unwrap().count(), 40);
                fs::remove_dir_all(&dir).unwrap();
            });
        }
    });
    assert_eq!(fs::read_dir(m.path("")).unwrap().count(), 0);
}

#[test]
fn many_descriptors() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let files: Vec<File> = (0..300)
        .map(|i| {
            let path = m.path(&i.to_string());
            fs::write(&path, vec![i as u8; 5000]).unwrap();
            File::open(&path).unwrap()
        })
        .collect();
    for (i, f) in files.iter().enumerate() {
        let mut bytes = [0; 5000];
        f.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|b| *b == i as u8));
    }
    drop(files);
    m.tree.wait_releases(600);
}

#[test]
fn cached_after_the_first_time() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/f"), vec![7; 100_000]).unwrap();
    let all = || {
        assert_eq!(fs::read_dir(m.path("d")).unwrap().count(), 1);
        assert_eq!(fs::metadata(m.path("d/f")).unwrap().len(), 100_000);
        assert!(!m.path("d/none").exists());
    };
    all();
    all();
    let ops = ["lookup", "getattr", "readdir"];
    let before = ops.map(|op| m.tree.asked(op));
    all();
    // That a name is not there is asked every time: only raftd can know.
    let [lookup, getattr, readdir] = before;
    let now = ops.map(|op| m.tree.asked(op));
    assert_eq!(now, [lookup + 1, getattr, readdir]);
}

#[test]
fn pages_outlive_a_close() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    // A pushed invalidation of the name could come after the first read, and an
    // inode without a name in the kernel goes with its pages.
    m.tree.create_quietly("f", b"theirs");
    // So small that each READ is a request.
    let read = |want: &[u8]| {
        let before = m.tree.asked("read");
        assert_eq!(fs::read(m.path("f")).unwrap(), want);
        m.tree.asked("read") > before
    };
    assert!(read(b"theirs"));
    assert!(!read(b"theirs"));
    m.tree.write("f", 0, b"change");
    assert!(read(b"change"));
    assert!(!read(b"change"));
    let f = OpenOptions::new().write(true).open(m.path("f")).unwrap();
    f.write_all_at(b"ours..", 0).unwrap();
    drop(f);
    read(b"ours..");
    assert!(!read(b"ours.."));
}

#[test]
fn read_only() {
    let options = Options {
        read_only: true,
        ..Options::default()
    };
    let Some(m) = mount(options) else {
        return;
    };
    m.tree.create("f", b"text");
    assert_eq!(fs::read(m.path("f")).unwrap(), b"text");
    assert_eq!(errno(fs::write(m.path("f"), b"")), Errno::EROFS);
    assert_eq!(errno(fs::write(m.path("g"), b"")), Errno::EROFS);
    assert_eq!(errno(fs::create_dir(m.path("d"))), Errno::EROFS);
    assert_eq!(errno(fs::remove_file(m.path("f"))), Errno::EROFS);
    assert_eq!(m.tree.asked("unlink"), 0);
}
