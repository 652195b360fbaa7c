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

//! Extended attributes and ACLs.  This machine's kernel asks for them, and
//! keeps ACLs; OpenBSD's never does, but what if.

#![forbid(unsafe_code)]

use crate::client::Client;
use crate::kernel::{message, u32_at, u32s};
use crate::tree::Mode;
use crate::{mount, openbsd, wait_until, Mount, OpenBsd, Options};
use nix::errno::Errno;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

/// As Python calls it.
const NOT_SUPPORTED: &str = "ENOTSUP";

/// Runs a program, with the path of a file as `p`; what it prints, or the name
/// of the errno that it fails with.
fn python(m: &Mount, path: &str, program: &str) -> String {
    let text = format!(
        "import errno, os, sys\np = sys.argv[1]\ntry:\n    print({program}, end='')\n\
         except OSError as e:\n    print(errno.errorcode[e.errno], end='')"
    );
    let mut command = Command::new("python3");
    let output = command.args(["-c", &text]).arg(m.path(path)).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn get(m: &Mount, path: &str, name: &str) -> String {
    python(m, path, &format!("os.getxattr(p, '{name}').decode()"))
}

fn set(m: &Mount, path: &str, name: &str, value: &str) -> String {
    python(m, path, &format!("os.setxattr(p, '{name}', b'{value}')"))
}

fn list(m: &Mount, path: &str) -> String {
    python(m, path, "' '.join(sorted(os.listxattr(p)))")
}

/// Whether somebody who owns nothing can read the file; None without a way to
/// ask.
fn may_read(m: &Mount, path: &str) -> Option<bool> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]);
    match command.arg(m.path(path)).output() {
        Ok(output) => Some(output.status.success()),
        Err(e) => {
            println!("SKIPPED: setpriv: {e}");
            None
        }
    }
}

/// Owner rw, the user `uid` r, the group r, others nothing.
fn acl(uid: u32) -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, uid),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[test]
fn set_and_told() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    fs::write(m.path("f"), b"x").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    for path in ["f", "d", ""] {
        assert_eq!(list(&m, path), "");
        assert_eq!(get(&m, path, "user.a"), "ENODATA");
        assert_eq!(set(&m, path, "user.a", "one"), "None");
        assert_eq!(get(&m, path, "user.a"), "one");
        assert_eq!(set(&m, path, "trusted.b", ""), "None");
        assert_eq!(get(&m, path, "trusted.b"), "");
        assert_eq!(list(&m, path), "trusted.b user.a");
        let how = |how| format!("os.setxattr(p, 'user.a', b'two', os.XATTR_{how})");
        assert_eq!(python(&m, path, &how("CREATE")), "EEXIST");
        assert_eq!(python(&m, path, &how("REPLACE")), "None");
        assert_eq!(get(&m, path, "user.a"), "two");
        assert_eq!(python(&m, path, "os.removexattr(p, 'user.a')"), "None");
        assert_eq!(python(&m, path, "os.removexattr(p, 'user.a')"), "ENODATA");
        assert_eq!(python(&m, path, &how("REPLACE")), "ENODATA");
        assert_eq!(list(&m, path), "trusted.b");
        assert_eq!(set(&m, path, "none.a", ""), NOT_SUPPORTED);
        assert_eq!(get(&m, path, "none.a"), NOT_SUPPORTED);
        assert_eq!(set(&m, path, "user.", ""), "EINVAL");
    }
    let big = "os.setxattr(p, 'user.big', b'x' * 65536) or len(os.getxattr(p, 'user.big'))";
    assert_eq!(python(&m, "f", big), "65536");
    let bigger = "os.setxattr(p, 'user.big', b'x' * 65537)";
    assert_eq!(python(&m, "f", bigger), "E2BIG");
    // A buffer that is too small.
    let small = |call: &str| {
        format!(
            "(lambda c: (c.{call}, errno.errorcode[__import__('ctypes').get_errno()]))\
             (__import__('ctypes').CDLL(None, use_errno=True))"
        )
    };
    let getxattr = small("getxattr(os.fsencode(p), b'user.big', bytes(9), 9)");
    assert_eq!(python(&m, "f", &getxattr), "(-1, 'ERANGE')");
    let listxattr = small("listxattr(os.fsencode(p), bytes(9), 9)");
    assert_eq!(python(&m, "f", &listxattr), "(-1, 'ERANGE')");
    m.tree.unlink("f");
}

#[test]
fn nobody_is_asked_for_what_is_not_there() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    m.tree.create("theirs", b"text");
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/ours"), b"text").unwrap();
    for path in ["theirs", "d/ours"] {
        fs::set_permissions(m.path(path), Permissions::from_mode(0o640)).unwrap();
        // For capabilities.
        let mut f = OpenOptions::new().append(true).open(m.path(path)).unwrap();
        f.write_all(b"more").unwrap();
        // For ACLs, of the directories as well.
        match may_read(&m, path) {
            Some(may) => assert!(!may),
            None => return,
        }
        assert_eq!(list(&m, path), "");
        assert_eq!(get(&m, path, "user.a"), "ENODATA");
    }
    let asked = || ["getxattr", "listxattr"].map(|op| m.tree.asked(op));
    assert_eq!(asked(), [0, 0]);
    // The kernel does ask.
    assert_eq!(set(&m, "theirs", "user.a", ""), "None");
    fs::write(m.path("theirs"), b"again").unwrap();
    assert_eq!(may_read(&m, "theirs"), Some(false));
    assert_eq!(list(&m, "theirs"), "user.a");
    assert!(asked().iter().all(|n| *n > 0), "{:?}", asked());
}

#[test]
fn changes_by_others() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    fs::write(m.path("f"), b"text").unwrap();
    for i in 0..5 {
        assert_eq!(list(&m, "f"), "");
        m.tree.set_xattr("f", "user.a", i.to_string().as_bytes());
        wait_until("it is there", || get(&m, "f", "user.a") == i.to_string());
        assert_eq!(list(&m, "f"), "user.a");
        m.tree.remove_xattr("f", "user.a");
        wait_until("it is gone", || get(&m, "f", "user.a") == "ENODATA");
    }
    m.tree.set_xattr("f", "user.a", b"x");
    m.tree.inval_all();
    wait_until("it is there", || list(&m, "f") == "user.a");
}

#[test]
fn acls_that_others_set() {
    let Some(m) = mount(Options::default()) else {
        return;
    };
    fs::write(m.path("f"), b"text").unwrap();
    fs::set_permissions(m.path("f"), Permissions::from_mode(0o640)).unwrap();
    if may_read(&m, "f").is_none() {
        return;
    }
    let may = || may_read(&m, "f").unwrap();
    for _ in 0..3 {
        assert!(!may());
        m.tree
            .set_xattr("f", "system.posix_acl_access", &acl(65534));
        wait_until("the ACL counts", may);
        m.tree
            .set_xattr("f", "system.posix_acl_access", &acl(65533));
        wait_until("it does so no more", || !may());
        m.tree.remove_xattr("f", "system.posix_acl_access");
    }
}

#[test]
fn refused_as_other_changes() {
    let options = Options {
        read_only: true,
        ..Options::default()
    };
    let Some(m) = mount(options) else {
        return;
    };
    m.tree.create("f", b"text");
    m.tree.set_xattr("f", "user.a", b"told");
    assert_eq!(set(&m, "f", "user.a", "x"), "EROFS");
    assert_eq!(python(&m, "f", "os.removexattr(p, 'user.a')"), "EROFS");
    assert_eq!(get(&m, "f", "user.a"), "told");
    drop(m);

    let m = mount(Options::default()).unwrap();
    m.tree.create("f", b"text");
    assert_eq!(list(&m, "f"), "");
    m.tree.quorum(false);
    wait_until("it is refused", || set(&m, "f", "user.a", "x") == "EROFS");
    m.tree.quorum(true);
    wait_until("it is not", || set(&m, "f", "user.a", "x") == "None");
    assert_eq!(m.tree.asked("removexattr"), 0);
}

#[test]
fn done_after_all() {
    let options = Options {
        timeout: Duration::from_secs(1),
        ..Options::default()
    };
    let Some(m) = mount(options) else {
        return;
    };
    fs::write(m.path("f"), b"text").unwrap();
    assert_eq!(list(&m, "f"), "");
    m.tree.set_mode(Mode::Mute);
    assert_eq!(set(&m, "f", "user.a", "late"), "EIO");
    m.tree.speak();
    wait_until("it is there", || get(&m, "f", "user.a") == "late");
}

const SETXATTR: u32 = 21;
const GETXATTR: u32 = 22;
const LISTXATTR: u32 = 23;
const REMOVEXATTR: u32 = 24;

fn odd(m: &OpenBsd, op: u32, node: u64, body: &[&[u8]]) -> nix::Result<Vec<u8>> {
    let body = body.concat();
    m.device.odd(|unique| message(op, unique, node, 0, &body))
}

#[test]
fn from_a_kernel_that_never_asks() {
    let Some(mut m) = openbsd(Options::default()) else {
        return;
    };
    m.put("f", b"text").unwrap();
    let f = m.node("f").unwrap();
    let set = |node, name: &[u8], value: &[u8], flags| {
        let head = u32s(&[value.len() as u32, flags]);
        odd(&m, SETXATTR, node, &[&head, name, b"\0", value]).map(drop)
    };
    let get = |node, name: &[u8], size| odd(&m, GETXATTR, node, &[&u32s(&[size, 0]), name, b"\0"]);
    let list = |node, size| odd(&m, LISTXATTR, node, &[&u32s(&[size, 0])]);
    let remove = |node, name: &[u8]| odd(&m, REMOVEXATTR, node, &[name, b"\0"]).map(drop);

    assert_eq!(set(f, b"user.a", b"value", 0), Ok(()));
    assert_eq!(get(f, b"user.a", 5).unwrap(), b"value");
    assert_eq!(u32_at(&get(f, b"user.a", 0).unwrap(), 0), 5);
    assert_eq!(get(f, b"user.a", 4), Err(Errno::ERANGE));
    assert_eq!(get(f, b"user.a", u32::MAX).unwrap(), b"value");
    assert_eq!(list(f, 7).unwrap(), b"user.a\0");
    assert_eq!(u32_at(&list(f, 0).unwrap(), 0), 7);
    assert_eq!(list(f, 6), Err(Errno::ERANGE));

    let long = [b'x'; 5000];
    for (name, want) in [
        (&b""[..], Errno::ERANGE),
        (&long, Errno::ERANGE),
        (b"user.", Errno::EINVAL),
        (b"user", Errno::EOPNOTSUPP),
        (b"\xff/..", Errno::EOPNOTSUPP),
    ] {
        assert_eq!(set(f, name, b"", 0), Err(want), "{name:?}");
        assert_eq!(get(f, name, 10), Err(want), "{name:?}");
        assert_eq!(remove(f, name), Err(want), "{name:?}");
    }
    assert_eq!(set(f, b"user.b", &vec![0; 65537], 0), Err(Errno::E2BIG));
    for flags in [3, 4, u32::MAX] {
        assert_eq!(set(f, b"user.b", b"", flags), Err(Errno::EINVAL));
    }
    for node in [0, 999_999, u64::MAX] {
        assert_eq!(set(node, b"user.a", b"", 0), Err(Errno::ESTALE));
        assert_eq!(get(node, b"user.a", 10), Err(Errno::ESTALE));
        assert_eq!(list(node, 10), Err(Errno::ESTALE));
        assert_eq!(remove(node, b"user.a"), Err(Errno::ESTALE));
    }
    // No end of a name; less than there must be.
    for op in [GETXATTR, REMOVEXATTR] {
        assert_eq!(odd(&m, op, f, &[&[b'x'; 40]]), Err(Errno::ENOSYS));
    }
    for op in [SETXATTR, GETXATTR, LISTXATTR] {
        assert_eq!(odd(&m, op, f, &[&[0; 3]]), Err(Errno::ENOSYS));
    }
    assert_eq!(list(f, 100).unwrap(), b"user.a\0");
    assert_eq!(m.get("f").unwrap(), b"text");
    m.end();
}
