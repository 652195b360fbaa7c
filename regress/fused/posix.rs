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

//! What programs do with files: scenarios for both kernels, and what only this
//! machine's has.

#![forbid(unsafe_code)]

use crate::client::{fails, Client};
use crate::{mount, openbsd, scenarios, wait_until, Options};
use common::fs::S_IFMT;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::thread;

const READ: OFlag = OFlag::O_RDONLY;
const WRITE: OFlag = OFlag::O_WRONLY;
const BOTH: OFlag = OFlag::O_RDWR;

scenarios![
    files,
    unlinked_files,
    large_and_sparse_files,
    names_and_directories,
    renames,
    links,
    attributes,
    many_at_once,
    many_descriptors,
    sizes_as_they_change,
];

fn files(c: &impl Client) {
    c.put("f", b"hello").unwrap();
    assert_eq!(c.get("f").unwrap(), b"hello");
    assert_eq!(c.tree().contents("f"), b"hello");
    assert_eq!(c.stat("f").unwrap().size, 5);

    let f = c.open("f", WRITE | OFlag::O_APPEND, 0).unwrap();
    assert_eq!(c.write(&f, b", world"), Ok(7));
    c.close(f).unwrap();
    assert_eq!(c.get("f").unwrap(), b"hello, world");

    let f = c.open("f", BOTH, 0).unwrap();
    assert_eq!(c.pwrite(&f, b"there", 7), Ok(5));
    c.ftruncate(&f, 9).unwrap();
    let mut text = [0; 20];
    assert_eq!(c.read(&f, &mut text), Ok(9));
    assert_eq!(&text[..9], b"hello, th");
    assert_eq!(c.read(&f, &mut text), Ok(0));
    c.ftruncate(&f, 5000).unwrap();
    assert_eq!(c.get("f").unwrap().len(), 5000);
    c.fsync(&f).unwrap();

    c.put("f", b"short").unwrap();
    assert_eq!(c.get("f").unwrap(), b"short");
    c.close(f).unwrap();

    let excl = WRITE | OFlag::O_CREAT | OFlag::O_EXCL;
    assert_eq!(fails(c.open("f", excl, 0o644)), Errno::EEXIST);
    assert_eq!(fails(c.open("none", READ, 0)), Errno::ENOENT);
    assert_eq!(fails(c.open("f/none", READ, 0)), Errno::ENOTDIR);
}

fn unlinked_files(c: &impl Client) {
    c.put("f", b"short").unwrap();
    let f = c.open("f", BOTH, 0).unwrap();
    assert_eq!(c.fstat(&f).unwrap().nlink, 1);
    c.unlink("f").unwrap();
    assert_eq!(fails(c.open("f", READ, 0)), Errno::ENOENT);
    assert_eq!(c.fstat(&f).unwrap().nlink, 0);
    c.pwrite(&f, b"S", 0).unwrap();
    let mut bytes = [0; 5];
    c.pread_exact(&f, &mut bytes, 0);
    assert_eq!(&bytes, b"Short");
    c.close(f).unwrap();

    c.put("old", b"old").unwrap();
    let old = c.open("old", READ, 0).unwrap();
    c.fstat(&old).unwrap();
    c.put("new", b"new").unwrap();
    c.rename("new", "old").unwrap();
    assert_eq!(c.fstat(&old).unwrap().nlink, 0);
    assert_eq!(c.get("old").unwrap(), b"new");
    let mut bytes = [0; 3];
    c.pread_exact(&old, &mut bytes, 0);
    assert_eq!(&bytes, b"old");
    c.close(old).unwrap();
}

fn large_and_sparse_files(c: &impl Client) {
    let bytes: Vec<u8> = (0..8u32 << 20).map(|i| (i ^ (i >> 9)) as u8).collect();
    c.put("large", &bytes).unwrap();
    assert!(c.get("large").unwrap() == bytes);
    assert!(c.tree().contents("large") == bytes);

    let create = BOTH | OFlag::O_CREAT;
    let sparse = c.open("sparse", create, 0o644).unwrap();
    c.pwrite(&sparse, b"end", 64 << 30).unwrap();
    c.pwrite(&sparse, b"begin", 0).unwrap();
    c.close(sparse).unwrap();
    let sparse = c.open("sparse", READ, 0).unwrap();
    let mut end = [1; 6];
    c.pread_exact(&sparse, &mut end, (64 << 30) - 3);
    assert_eq!(&end, b"\0\0\0end");
    c.close(sparse).unwrap();

    let f = c.open("far", create, 0o644).unwrap();
    assert_eq!(fails(c.pwrite(&f, b"x", 1 << 62)), Errno::EFBIG);
    c.close(f).unwrap();
}

fn names_and_directories(c: &impl Client) {
    c.mkdir("d", 0o755).unwrap();
    for i in 0..1500 {
        c.put(&format!("d/{i}"), b"").unwrap();
    }
    let list = |dir: &str| -> BTreeSet<String> { c.names(dir).into_iter().collect() };
    let mut want: BTreeSet<String> = (0..1500).map(|i| i.to_string()).collect();
    assert_eq!(list("d"), want);
    assert_eq!(list("d"), want);
    c.unlink("d/7").unwrap();
    c.rename("d/8", "d/x").unwrap();
    want.remove("7");
    want.remove("8");
    want.insert("x".into());
    assert_eq!(list("d"), want);
    // getcwd(3) finds a directory by its number.
    let found = |name: &str, all: Vec<(String, u64)>| {
        let found = all.into_iter().find(|(n, _)| n == name);
        found.map(|(_, ino)| ino)
    };
    let (here, d) = (c.readdir("").unwrap(), c.readdir("d").unwrap());
    assert_eq!(found("d", here), Some(c.stat("d").unwrap().ino));
    assert_eq!(found(".", d.clone()), Some(c.stat("d").unwrap().ino));
    assert_eq!(found("..", d), Some(c.stat("").unwrap().ino));

    assert_eq!(fails(c.rmdir("d")), Errno::ENOTEMPTY);
    assert_eq!(fails(c.mkdir("d", 0o755)), Errno::EEXIST);
    c.mkdir("e", 0o755).unwrap();
    assert_eq!(c.stat("").unwrap().nlink, 4);
    c.rename("e", "d/e").unwrap();
    assert_eq!(c.stat("").unwrap().nlink, 3);
    assert_eq!(c.stat("d/e/../..").unwrap(), c.stat("").unwrap());
    c.rmdir("d/e").unwrap();
    assert_eq!(c.stat("d").unwrap().nlink, 2);

    let long = "n".repeat(255);
    c.put(&long, b"long").unwrap();
    assert_eq!(c.get(&long).unwrap(), b"long");
    let longer = "n".repeat(256);
    assert_eq!(fails(c.put(&longer, b"")), Errno::ENAMETOOLONG);
}

fn renames(c: &impl Client) {
    c.put("a", b"a").unwrap();
    c.put("b", b"b").unwrap();
    c.rename("a", "b").unwrap();
    assert_eq!(c.get("b").unwrap(), b"a");
    assert!(!c.exists("a"));
    c.mkdir("d", 0o755).unwrap();
    c.mkdir("d/e", 0o755).unwrap();
    c.put("d/e/f", b"deep").unwrap();
    c.rename("d/e", "g").unwrap();
    assert_eq!(c.get("g/f").unwrap(), b"deep");
    assert_eq!(fails(c.stat("d/e/f")), Errno::ENOENT);
    assert_eq!(fails(c.rename("none", "b")), Errno::ENOENT);
    c.mkdir("full", 0o755).unwrap();
    c.put("full/x", b"").unwrap();
    assert_eq!(fails(c.rename("g", "full")), Errno::ENOTEMPTY);
    c.rename("g", "d").unwrap();
    assert_eq!(c.get("d/f").unwrap(), b"deep");
}

fn links(c: &impl Client) {
    c.put("b", b"b").unwrap();
    assert_eq!(c.stat("b").unwrap().nlink, 1);
    c.link("b", "a").unwrap();
    assert_eq!(c.stat("b").unwrap().nlink, 2);
    c.put("a", b"both").unwrap();
    assert_eq!(c.get("b").unwrap(), b"both");
    assert_eq!(c.stat("a").unwrap(), c.stat("b").unwrap());
    c.unlink("a").unwrap();
    assert_eq!(c.stat("b").unwrap().nlink, 1);
    c.link("b", "again").unwrap();
    c.put("other", b"").unwrap();
    c.rename("other", "again").unwrap();
    assert_eq!(c.stat("b").unwrap().nlink, 1);

    c.mkdir("d", 0o755).unwrap();
    c.symlink("../b", "d/l").unwrap();
    assert_eq!(c.readlink("d/l").unwrap(), "../b");
    assert_eq!(c.get("d/l").unwrap(), b"both");
    c.symlink("d", "e").unwrap();
    assert_eq!(c.get("e/l").unwrap(), b"both");
    c.symlink("loop", "loop").unwrap();
    assert_eq!(fails(c.get("loop")), Errno::ELOOP);
    assert_eq!(fails(c.readlink("b")), Errno::EINVAL);
    c.mkfifo("fifo", 0o600).unwrap();
    assert_eq!(c.stat("fifo").unwrap().mode & S_IFMT, 0o010000);
}

fn attributes(c: &impl Client) {
    c.put("f", b"x").unwrap();
    c.chmod("f", 0o4711).unwrap();
    assert_eq!(c.stat("f").unwrap().mode & 0o7777, 0o4711);
    c.chown("f", 12, 34).unwrap();
    let st = c.stat("f").unwrap();
    assert_eq!((st.uid, st.gid), (12, 34));
    assert_eq!(st.mode & 0o7777, 0o711, "chown takes away set-user-id");

    let (before, after) = ((-101, 750_000_000), (1_000_000_000, 5));
    c.utimes("f", before, after).unwrap();
    let st = c.stat("f").unwrap();
    assert_eq!((st.atime, st.mtime), (before, after));
    let attr = c.tree().attr("f");
    assert_eq!((attr.atime.sec, attr.atime.nsec), (-101, 750_000_000));
    c.truncate("f", 7).unwrap();
    assert_eq!(c.stat("f").unwrap().size, 7);

    let space = c.statfs().unwrap();
    assert_eq!((space.bytes, space.files), (1 << 30, 1000));
    assert_eq!(space.name_max, 255);
}

fn many_at_once(c: &impl Client) {
    thread::scope(|s| {
        for t in 0..16 {
            s.spawn(move || {
                c.mkdir(&format!("t{t}"), 0o755).unwrap();
                for i in 0..40usize {
                    let bytes = vec![(t * 16 + i) as u8; 100 + i * 700];
                    let path = format!("t{t}/{i}");
                    c.put(&path, &bytes).unwrap();
                    assert!(c.get(&path).unwrap() == bytes);
                    assert_eq!(c.stat(&path).unwrap().size, bytes.len() as u64);
                }
                let names = c.names(&format!("t{t}"));
                assert_eq!(names.len(), 40);
                for name in names {
                    c.unlink(&format!("t{t}/{name}")).unwrap();
                }
                c.rmdir(&format!("t{t}")).unwrap();
            });
        }
    });
    assert!(c.names("").is_empty());
}

fn many_descriptors(c: &impl Client) {
    let files: Vec<_> = (0..300)
        .map(|i| {
            let path = i.to_string();
            c.put(&path, &vec![i as u8; 5000]).unwrap();
            c.open(&path, READ, 0).unwrap()
        })
        .collect();
    for (i, f) in files.iter().enumerate() {
        let mut bytes = [0; 5000];
        c.pread_exact(f, &mut bytes, 0);
        assert!(bytes.iter().all(|b| *b == i as u8));
    }
    drop(files);
    c.tree().wait_releases(600);
}

/// stat(2) and read(2) between writes, of which each must see the last.
fn sizes_as_they_change(c: &impl Client) {
    let f = c.open("f", BOTH | OFlag::O_CREAT, 0o644).unwrap();
    let mut want = Vec::new();
    for i in 0..100u8 {
        let more = vec![i; 1 + usize::from(i) * 37];
        assert_eq!(c.pwrite(&f, &more, want.len() as u64), Ok(more.len()));
        want.extend(more);
        assert_eq!(c.fstat(&f).unwrap().size, want.len() as u64);
        assert_eq!(c.stat("f").unwrap().size, want.len() as u64);
        let mut bytes = vec![0; want.len()];
        c.pread_exact(&f, &mut bytes, 0);
        assert!(bytes == want);
    }
    for size in [50_000, 777, 0] {
        c.ftruncate(&f, size).unwrap();
        want.truncate(size as usize);
        assert_eq!(c.fstat(&f).unwrap().size, size);
        let mut bytes = vec![0; want.len() + 10];
        assert_eq!(c.pread(&f, &mut bytes, 0), Ok(want.len()));
        assert!(bytes[..want.len()] == want);
    }
    c.close(f).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn past_the_pages() {
    use std::os::unix::fs::OpenOptionsExt;

    let Some(m) = mount(Options::default()) else {
        return;
    };
    let bytes: Vec<u8> = (0..4u32 << 20).map(|i| (i ^ (i >> 9)) as u8).collect();
    fs::write(m.path("large"), &bytes).unwrap();
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(m.path("large"))
        .unwrap();
    let mut some = vec![0; 1 << 20];
    direct.read_exact_at(&mut some, 3 << 20).unwrap();
    assert!(some == bytes[3 << 20..]);
}

#[test]
fn names_are_bytes() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    let odd = std::ffi::OsString::from_vec(vec![b'a', 0xff, b'\n']);
    fs::write(m.path("").join(&odd), b"odd").unwrap();
    assert!(fs::read_dir(m.path(""))
        .unwrap()
        .any(|e| e.unwrap().file_name() == odd));
}

#[cfg(target_os = "linux")]
#[test]
fn renames_with_flags() {
    use nix::fcntl::{renameat2, RenameFlags, AT_FDCWD};

    let Some(m) = mount(Options::default()) else {
        return;
    };
    let (a, b) = (m.path("a"), m.path("b"));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    let rename = |flags| renameat2(AT_FDCWD, &a, AT_FDCWD, &b, flags);
    assert_eq!(rename(RenameFlags::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename(RenameFlags::RENAME_WHITEOUT), Err(Errno::EINVAL));
    rename(RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"b");
    assert_eq!(fs::read(&b).unwrap(), b"a");
}

#[test]
fn locks_of_one_mount() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    fs::write(m.path("f"), b"").unwrap();
    let open = || File::open(m.path("f")).unwrap();
    let lock = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
    let second = Flock::lock(open(), FlockArg::LockExclusiveNonblock);
    assert_eq!(second.unwrap_err().1, Errno::EWOULDBLOCK);
    drop(lock);
}

#[cfg(target_os = "linux")]
#[test]
fn a_lost_lock_is_told_and_no_lock_costs_nothing() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    fs::write(m.path("f"), b"x").unwrap();
    let open = || File::options().read(true).write(true).open(m.path("f"));
    drop(open().unwrap());
    assert_eq!(m.tree.asked("unlock"), 0);
    let beside = open().unwrap();
    let lock = Flock::lock(open().unwrap(), FlockArg::LockExclusive).unwrap();
    lock.write_all_at(b"y", 0).unwrap();
    m.tree.lose_locks();
    // fused has heard of it, and nothing written before is on its way.
    m.tree.wait_lock_acks(1);
    let errno = |e: std::io::Error| e.raw_os_error();
    let (mut buf, eio) = ([0], Some(Errno::EIO as i32));
    assert_eq!(errno(lock.read_at(&mut buf, 0).unwrap_err()), eio);
    assert_eq!(errno(lock.write_at(b"z", 0).unwrap_err()), eio);
    assert_eq!(errno(lock.sync_all().unwrap_err()), eio);
    beside.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, *b"y");
    beside.write_all_at(b"w", 0).unwrap();
    drop(lock);
    assert_eq!(m.tree.asked("unlock"), 0, "it had none any more");
    Flock::lock(beside, FlockArg::LockExclusiveNonblock).unwrap();
}

/// The next holder of the lock must not be overtaken by what the last one wrote.
#[cfg(target_os = "linux")]
#[test]
fn an_unlock_comes_behind_late_writes() {
    let options = Options {
        timeout: std::time::Duration::from_secs(1),
        ..Options::default()
    };
    let Some(m) = mount(options) else {
        return;
    };
    m.tree.create("f", b"old");
    let f = File::options().write(true).open(m.path("f")).unwrap();
    let lock = Flock::lock(f, FlockArg::LockExclusive).unwrap();
    m.tree.set_mode(crate::tree::Mode::Mute);
    lock.write_all_at(b"new", 0).unwrap();
    assert_eq!(crate::errno(lock.sync_all()), Errno::EIO, "in time");
    thread::scope(|s| {
        let unlocking = s.spawn(|| lock.unlock().map(drop).map_err(|(_, e)| e));
        // Time enough for it to be asked for.
        for i in 0..50 {
            assert!(!m.path(&format!("absent{i}")).exists());
        }
        assert!(!unlocking.is_finished());
        assert_eq!(m.tree.asked("unlock"), 0);
        m.tree.speak();
        unlocking.join().unwrap().unwrap();
    });
    assert_eq!(m.tree.asked("unlock"), 1);
    assert_eq!(fs::read(m.path("f")).unwrap(), b"new");
}

/// Linux cuts a file to the size that it knows when such a write fails.
#[cfg(target_os = "linux")]
#[test]
fn a_failed_direct_write_cuts_nothing_off() {
    use nix::fcntl::{fcntl, FcntlArg};
    use std::os::unix::fs::OpenOptionsExt;
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", &[1; 4096]);
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let turned = options.open(m.path("f")).unwrap();
    fcntl(&turned, FcntlArg::F_SETFL(OFlag::O_DIRECT)).unwrap();
    options.custom_flags(OFlag::O_DIRECT.bits());
    let opened = options.open(m.path("f")).unwrap();
    m.tree.write("f", 4096, &[2; 1 << 20]);
    for f in [opened, turned] {
        let far = f.write_at(&[3; 4096], 1 << 43);
        assert_eq!(crate::errno(far), Errno::EFBIG);
        assert_eq!(m.tree.attr("f").size, 4096 + (1 << 20));
        assert_eq!(f.metadata().unwrap().len(), 4096 + (1 << 20));
        // One that is meant.
        f.set_len(4096).unwrap();
        assert_eq!(m.tree.attr("f").size, 4096);
        m.tree.write("f", 4096, &[2; 1 << 20]);
    }
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

    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let status = std::process::Command::new("setpriv")
        .args(["--reuid=_dfsd", "--clear-groups", "fallocate", "-l9000"])
        .arg(&path)
        .status();
    assert!(status.unwrap().success());
    // Of what it changes the kernel only asks again when it is told to.
    wait_until("the bits are gone", || {
        fs::metadata(&path).unwrap().mode() & 0o7777 == 0o777
    });
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

#[cfg(target_os = "linux")]
#[test]
fn room_and_holes() {
    use nix::fcntl::{fallocate, FallocateFlags};
    use nix::unistd::{lseek, Whence};
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", &[1; 10_000]);
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    let mut bytes = vec![0; 10_000];
    // All in the pages of the kernel.
    f.read_exact_at(&mut bytes, 0).unwrap();
    let (keep, punch) = (
        FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE,
    );
    fallocate(&f, keep | punch, 4000, 200).unwrap();
    f.read_exact_at(&mut bytes, 0).unwrap();
    let mut want = vec![1; 10_000];
    want[4000..4200].fill(0);
    assert!(bytes == want);
    assert!(m.tree.contents("f") == want);
    fallocate(&f, keep, 9000, 9000).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 10_000);
    fallocate(&f, FallocateFlags::empty(), 9000, 3000).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 12_000);
    assert_eq!(lseek(&f, 100, Whence::SeekHole), Ok(12_000));
    assert_eq!(lseek(&f, 100, Whence::SeekData), Ok(100));
    assert_eq!(lseek(&f, 12_000, Whence::SeekData), Err(Errno::ENXIO));

    fallocate(&f, FallocateFlags::FALLOC_FL_ZERO_RANGE, 8000, 12_000).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 20_000);
    want.truncate(8000);
    want.resize(20_000, 0);
    assert!(fs::read(m.path("f")).unwrap() == want);

    m.tree
        .set_mode(crate::tree::Mode::Refuse(common::fs::FsError::NoSpace));
    let refused = fallocate(&f, FallocateFlags::empty(), 0, 1 << 30);
    assert_eq!(refused, Err(Errno::ENOSPC));
    m.tree.set_mode(crate::tree::Mode::Apply);
    assert!(fs::read(m.path("f")).unwrap() == want);
}

#[test]
fn reads_are_told_once() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("f", &[1; 5000]);
    let told = || m.tree.asked("accessed");
    for _ in 0..3 {
        assert_eq!(fs::read(m.path("f")).unwrap(), [1; 5000]);
    }
    m.tree.wait_asked("accessed", 1);
    let before = told();
    // The pages are those of our own write, and the read is seen nevertheless.
    fs::write(m.path("f"), [2; 5000]).unwrap();
    for _ in 0..3 {
        assert_eq!(fs::read(m.path("f")).unwrap(), [2; 5000]);
    }
    m.tree.wait_asked("accessed", before + 1);
    assert_eq!(told(), before + 1);
    // Written and not read.
    fs::write(m.path("f"), [3; 5000]).unwrap();
    fs::metadata(m.path("f")).unwrap();
    assert_eq!(told(), before + 1);
    // Without a quorum nobody could note it.
    m.tree.quorum(false);
    m.tree.revoke_and_wait("f");
    assert_eq!(fs::read(m.path("f")).unwrap(), [3; 5000]);
    assert_eq!(told(), before + 1);
}

#[test]
fn reads_are_not_told() {
    for options in [
        Options {
            read_only: true,
            ..Options::default()
        },
        Options {
            noatime: true,
            ..Options::default()
        },
    ] {
        let Some(m) = mount(options) else {
            return;
        };
        m.tree.create("f", &[1; 5000]);
        assert_eq!(fs::read(m.path("f")).unwrap(), [1; 5000]);
        assert_eq!(fs::read_dir(m.path("")).unwrap().count(), 1);
        assert_eq!(m.tree.asked("accessed"), 0);
    }
}

fn read_only_scenario(c: &impl Client) {
    c.tree().create("f", b"text");
    assert_eq!(c.get("f").unwrap(), b"text");
    assert_eq!(fails(c.put("f", b"")), Errno::EROFS);
    assert_eq!(fails(c.put("g", b"")), Errno::EROFS);
    assert_eq!(fails(c.mkdir("d", 0o755)), Errno::EROFS);
    assert_eq!(fails(c.unlink("f")), Errno::EROFS);
    assert_eq!(c.tree().asked("unlink"), 0);
}

#[test]
fn read_only() {
    let options = || Options {
        read_only: true,
        ..Options::default()
    };
    if let Some(m) = mount(options()) {
        read_only_scenario(&m);
    }
    if let Some(m) = openbsd(options()) {
        read_only_scenario(&*m);
    }
}
