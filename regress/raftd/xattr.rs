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

//! Extended attributes and ACLs, as apply keeps them.

use super::*;
use common::xattr::{XATTRS_MAX, XATTR_LIST_MAX, XATTR_SIZE_MAX};
use raftd::fs::xattr;

/// An ACL: owner, then a user, group or mask for each; `mask` names the last
/// but one entry so, and the last is the others.
pub fn acl(perms: &[(u16, Option<u32>)], named: bool) -> Vec<u8> {
    let [owner, middle @ .., other] = perms else {
        panic!("no ACL");
    };
    let mut entries = vec![(1u16, owner.0, u32::MAX)];
    let users = middle.iter().filter_map(|(p, id)| id.map(|id| (2, *p, id)));
    if named {
        entries.extend(users);
    }
    entries.push((4, 5, u32::MAX));
    if named {
        entries.push((16, 6, u32::MAX));
    }
    entries.push((32, other.0, u32::MAX));
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// rwx for the owner, rwx for user 1000, r-x for the group, others as said;
/// the mask is rw-.
fn named(other: u16) -> Vec<u8> {
    acl(&[(7, None), (7, Some(1000)), (other, None)], true)
}

fn minimal(owner: u16, other: u16) -> Vec<u8> {
    acl(&[(owner, None), (other, None)], false)
}

fn prefix(ino: InodeNo) -> Vec<u8> {
    [&b"x"[..], &ino.0.to_be_bytes()].concat()
}

pub fn count(v: &View<'_>, ino: InodeNo) -> usize {
    v.range(b"", &prefix(ino)).unwrap().count()
}

pub fn bytes(v: &View<'_>, ino: InodeNo) -> usize {
    let all = v.range(b"", &prefix(ino)).unwrap().map(Result::unwrap);
    all.map(|(k, v)| k.len() - 9 + v.len()).sum()
}

pub fn blocks(bytes: usize) -> u64 {
    match bytes <= INLINE_MAX {
        true => 0,
        false => (bytes as u64).div_ceil(BLOCK),
    }
}

impl Tree {
    fn set_how(
        &mut self,
        ino: InodeNo,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
        cred: Cred,
    ) -> Result<Attr, FsError> {
        let op = Op::SetXattr {
            ino,
            name: name.to_vec(),
            how,
            cred,
            check: Check::Kernel,
        };
        let payload = Payload::new(Bytes::copy_from_slice(value));
        self.full(op, payload).0.map(|reply| attr_of(Ok(reply)))
    }

    fn set(&mut self, ino: InodeNo, name: &[u8], value: &[u8]) -> Result<Attr, FsError> {
        self.set_how(ino, name, value, XattrHow::Any, SUPER)
    }

    fn remove(&mut self, ino: InodeNo, name: &[u8]) -> Result<Attr, FsError> {
        let name = name.to_vec();
        let check = Check::Kernel;
        let outcome = self.op(Op::RemoveXattr { ino, name, check });
        outcome.map(|reply| attr_of(Ok(reply)))
    }

    fn get(&self, ino: InodeNo, name: &[u8]) -> Result<Vec<u8>, FsError> {
        fs(xattr::get(&self.meta.read(), ino, name))
    }

    fn list(&self, ino: InodeNo) -> String {
        String::from_utf8(fs(xattr::list(&self.meta.read(), ino)).unwrap()).unwrap()
    }

    fn mode(&self, ino: InodeNo) -> u32 {
        self.attr(ino).mode & 0o7777
    }

    fn make_masked(&mut self, mut op: Op, mask: u32) -> InodeNo {
        match &mut op {
            Op::Create { umask, .. } | Op::Mkdir { umask, .. } | Op::Mknod { umask, .. } => {
                *umask = mask;
            }
            _ => {}
        }
        self.make(op)
    }
}

/// Who has given the file away since the kernel looked changes no ACL.
#[test]
fn the_owner_that_was() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let given = SetAttr {
        uid: Some(2),
        ..SetAttr::default()
    };
    t.op(setattr(f, given)).unwrap();
    let no = Err(FsError::NotOwner);
    for (uid, owner, name, want) in [
        (1, 1, ACL_ACCESS, no),
        (1, u32::MAX, ACL_ACCESS, no),
        (1, 2, ACL_ACCESS, Ok(())),
        (2, 1, ACL_ACCESS, Ok(())),
        (0, 1, ACL_ACCESS, Ok(())),
        (1, 1, &b"user.a"[..], Ok(())),
    ] {
        let check = Check::Owner { uid, owner };
        let name = name.to_vec();
        let set = Op::SetXattr {
            ino: f,
            name: name.clone(),
            how: XattrHow::Any,
            cred: SUPER,
            check,
        };
        let value = Payload::new(Bytes::from(named(4)));
        assert_eq!(t.full(set, value).0.map(drop), want, "{check:?}");
        let remove = Op::RemoveXattr {
            ino: f,
            name,
            check,
        };
        assert_eq!(t.op(remove).map(drop), want, "{check:?}");
    }
}

#[test]
fn values() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    assert!(!t.attr(f).xattrs);
    assert_eq!(t.get(f, b"user.a"), Err(FsError::NoAttr));
    assert_eq!(t.list(f), "");
    let before = t.attr(f);
    let attr = t.set(f, b"user.a", b"value").unwrap();
    assert!(attr.xattrs);
    assert_eq!(attr.ctime, time(t.index as i64));
    assert_eq!(
        (attr.mtime, attr.data_version),
        (before.mtime, before.data_version)
    );
    t.set(f, b"user.empty", b"").unwrap();
    t.set(f, b"trusted.t", &[0; 300]).unwrap();
    assert_eq!(t.get(f, b"user.a").unwrap(), b"value");
    assert_eq!(t.get(f, b"user.empty").unwrap(), b"");
    assert_eq!(t.list(f), "trusted.t\0user.a\0user.empty\0");
    let g = t.make(create(ROOT, "g"));
    assert_eq!(t.list(g), "");

    let how = |t: &mut Tree, name, how| t.set_how(f, name, b"v", how, SUPER).map(drop);
    assert_eq!(
        how(&mut t, b"user.a", XattrHow::Create),
        Err(FsError::Exists)
    );
    assert_eq!(
        how(&mut t, b"user.b", XattrHow::Replace),
        Err(FsError::NoAttr)
    );
    assert_eq!(how(&mut t, b"user.a", XattrHow::Replace), Ok(()));
    assert_eq!(how(&mut t, b"user.b", XattrHow::Create), Ok(()));
    assert_eq!(t.get(f, b"user.a").unwrap(), b"v");

    t.checkpoint();
    for name in [&b"user.a"[..], b"user.b", b"user.empty"] {
        assert!(t.remove(f, name).unwrap().xattrs);
    }
    assert_eq!(t.remove(f, b"user.a"), Err(FsError::NoAttr));
    assert!(!t.remove(f, b"trusted.t").unwrap().xattrs);
    assert_eq!(t.list(f), "");
    check_books(&t.meta);
}

#[test]
fn what_cannot_be() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let d = t.make(mkdir(ROOT, "d"));
    let s = t.make(symlink(ROOT, "s", "f"));
    let p = t.make(mknod(ROOT, "p", 0o010644));
    for (ino, name, value, want) in [
        (InodeNo(99), &b"user.a"[..], &b""[..], FsError::Stale),
        (f, b"", b"", FsError::Range),
        (f, &[b'x'; 256], b"", FsError::Range),
        (f, b"user.", b"", FsError::Invalid),
        (f, b"user.a\0", b"", FsError::Invalid),
        (f, b"none.a", b"", FsError::Unsupported),
        (f, b"system.a", b"", FsError::Unsupported),
        (f, b"user.a", &[0; XATTR_SIZE_MAX + 1], FsError::TooLong),
        (s, b"user.a", b"", FsError::NotOwner),
        (p, b"user.a", b"", FsError::NotOwner),
        (s, ACL_ACCESS, &named(0), FsError::Unsupported),
        (s, ACL_DEFAULT, &named(0), FsError::Unsupported),
        (f, ACL_DEFAULT, &named(0), FsError::NoPermission),
        (f, ACL_ACCESS, b"", FsError::Invalid),
        (d, ACL_DEFAULT, b"\x02\0\0\0", FsError::Invalid),
        (f, ACL_ACCESS, &[2; 5000], FsError::TooLong),
    ] {
        let before = dump(&t.meta.read());
        assert_eq!(t.set(ino, name, value), Err(want), "{ino} {name:?}");
        assert!(before == dump(&t.meta.read()));
        if matches!(want, FsError::Stale | FsError::Range | FsError::Unsupported) && ino == f {
            assert_eq!(t.remove(ino, name), Err(want));
            assert_eq!(t.get(ino, name), Err(want));
        }
    }
    t.set(s, b"trusted.a", b"on a link").unwrap();
    t.set(p, b"security.a", b"on a pipe").unwrap();
    check_books(&t.meta);
}

#[test]
fn how_much_fits() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    t.set(f, b"user.big", &[1; XATTR_SIZE_MAX]).unwrap();
    assert_eq!(t.get(f, b"user.big").unwrap().len(), XATTR_SIZE_MAX);
    assert_eq!(t.attr(f).blocks, t.counted_blocks() * 8);
    assert_eq!(t.counted_blocks(), 17);
    let mut n = 0;
    while t
        .set(f, format!("user.{n:02}").as_bytes(), &[2; 60000])
        .is_ok()
    {
        n += 1;
    }
    assert_eq!(n, (XATTRS_MAX as usize - XATTR_SIZE_MAX - 8) / 60007);
    check_books(&t.meta);
    // Less always fits.
    t.set(f, b"user.big", b"small").unwrap();
    t.set(f, b"user.00", &[2; 60000]).unwrap();
    check_books(&t.meta);

    // The names are too many before the bytes are.
    let g = t.make(create(ROOT, "g"));
    let mut n = 0;
    while t.set(g, format!("user.{n:0250}").as_bytes(), b"").is_ok() {
        n += 1;
    }
    assert_eq!(n, XATTR_LIST_MAX / 256);
    assert_eq!(t.list(g).len(), n * 256);
    check_books(&t.meta);

    let used = t.counted_blocks();
    for name in ["f", "g"] {
        t.op(unlink(ROOT, name)).unwrap();
    }
    assert!(used > 0 && t.counted_blocks() == 0);
    assert!(!dump(&t.meta.read()).iter().any(|(k, _)| k[0] == b'x'));
}

#[test]
fn room() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let node = NodeId(1);
    // Two inodes, and four times as much as one.
    let (bytes, inodes) = (6 * BLOCK, 6);
    t.op(Op::Capacity {
        node,
        bytes,
        inodes,
    })
    .unwrap();
    t.set(f, b"user.a", &[0; 3 * BLOCK as usize]).unwrap();
    let full = Err(FsError::NoSpace);
    assert_eq!(t.set(f, b"user.b", &[0; 5000]), full);
    t.write(f, 0, 2000).0.unwrap_err();
    t.set(f, b"user.a", b"").unwrap();
    t.set(f, b"user.b", &[0; 5000]).unwrap();
    check_books(&t.meta);
}

#[test]
fn an_orphan_keeps_them_until_it_goes() {
    let mut t = Tree::new();
    let s = t.session(1, 1);
    let f = t.make(create(ROOT, "f"));
    t.set(f, b"user.a", &[0; 5000]).unwrap();
    t.op(unlink(ROOT, "f")).unwrap();
    assert_eq!(t.get(f, b"user.a").unwrap().len(), 5000);
    t.set(f, b"user.b", b"").unwrap();
    check_books(&t.meta);
    let command = Command {
        origin: Some(Origin {
            session: s,
            seq: 1,
            acked: 0,
        }),
        time: time(1),
        op: Op::Release { inodes: vec![f] },
        payload: Payload::none(),
    };
    t.apply(&command);
    assert_eq!(t.get(f, b"user.a"), Err(FsError::Stale));
    check_books(&t.meta);
}

#[test]
fn acl_and_mode() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    t.op(setattr(f, chmod(0o6644))).unwrap();
    // What the mode says need not be kept.
    let attr = t.set(f, ACL_ACCESS, &minimal(6, 1)).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.xattrs), (0o6651, false));
    let attr = t.set(f, ACL_ACCESS, &named(4)).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.xattrs), (0o6764, true));
    assert_eq!(t.get(f, ACL_ACCESS).unwrap(), named(4));

    // chmod moves the mask, and not the group behind it.
    t.op(setattr(f, chmod(0o600))).unwrap();
    let mut want = named(0);
    (want[6], want[30]) = (6, 0);
    assert_eq!(t.get(f, ACL_ACCESS).unwrap(), want);
    // To remove the ACL leaves the mode; to do it again changes nothing.
    t.remove(f, ACL_ACCESS).unwrap();
    assert_eq!(t.mode(f), 0o600);
    let before = dump(&t.meta.read());
    t.remove(f, ACL_ACCESS).unwrap();
    t.remove(f, ACL_DEFAULT).unwrap();
    assert!(before == dump(&t.meta.read()));

    t.set(f, ACL_ACCESS, &named(4)).unwrap();
    let attr = t.set(f, ACL_ACCESS, &minimal(7, 0)).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.xattrs), (0o750, false));
    assert_eq!(t.get(f, ACL_ACCESS), Err(FsError::NoAttr));

    // A program of a group that its owner may not be in.
    let d = t.make(mkdir(ROOT, "d"));
    for (cred, ino, want) in [
        (OTHER, f, 0o4764),
        (USER, f, 0o6764),
        (SUPER, f, 0o6764),
        (OTHER, d, 0o6764),
    ] {
        t.op(setattr(ino, chmod(0o6755))).unwrap();
        let attr = t.set_how(ino, ACL_ACCESS, &named(4), XattrHow::Any, cred);
        assert_eq!(attr.unwrap().mode & 0o7777, want, "{cred:?}");
    }
    check_books(&t.meta);
}

#[test]
fn what_a_directory_hands_down() {
    let mut t = Tree::new();
    let plain = t.make(mkdir(ROOT, "plain"));
    let f = t.make_masked(create_as(plain, "f", 0o4666, USER), 0o027);
    let d = t.make_masked(mkdir_as(plain, "d", 0o1777, USER), 0o077);
    let p = t.make_masked(mknod(plain, "p", 0o010666), 0o777);
    assert_eq!((t.mode(f), t.mode(d), t.mode(p)), (0o4640, 0o1700, 0));
    assert!(!t.attr(f).xattrs && !t.attr(d).xattrs);

    let dir = t.make(mkdir_as(ROOT, "dir", 0o2775, USER));
    t.set(dir, ACL_DEFAULT, &named(4)).unwrap();
    assert_eq!(t.mode(dir), 0o2775);
    assert_eq!(t.get(dir, ACL_ACCESS), Err(FsError::NoAttr));

    // The umask does not count; the mode asked for does.
    let f = t.make_masked(create_as(dir, "f", 0o666, OTHER), 0o077);
    assert_eq!(t.mode(f), 0o664);
    let mut want = named(4);
    want[6] = 6;
    assert_eq!(t.get(f, ACL_ACCESS).unwrap(), want);
    assert_eq!(t.get(f, ACL_DEFAULT), Err(FsError::NoAttr));
    assert_eq!(t.attr(f).gid, USER.gid);
    let secret = t.make_masked(create_as(dir, "secret", 0o600, OTHER), 0);
    assert_eq!(t.mode(secret), 0o600);
    let p = t.make_masked(mknod(dir, "p", 0o010640), 0);
    assert_eq!(t.mode(p), 0o640);
    assert!(t.attr(p).xattrs);

    let sub = t.make_masked(mkdir_as(dir, "sub", 0o777, OTHER), 0o077);
    assert_eq!(t.mode(sub), 0o2764);
    assert_eq!(t.get(sub, ACL_ACCESS).unwrap(), named(4));
    assert_eq!(t.get(sub, ACL_DEFAULT).unwrap(), named(4));
    let below = t.make_masked(create_as(sub, "f", 0o666, OTHER), 0o777);
    assert_eq!(t.mode(below), 0o664);
    let s = t.make(symlink(dir, "s", "f"));
    assert_eq!(t.list(s), "");

    // One that says no more than a mode.
    let min = t.make(mkdir(ROOT, "min"));
    t.set(min, ACL_DEFAULT, &minimal(6, 4)).unwrap();
    let f = t.make_masked(create_as(min, "f", 0o777, USER), 0o077);
    assert_eq!((t.mode(f), t.attr(f).xattrs), (0o654, false));
    let sub = t.make_masked(mkdir_as(min, "sub", 0o777, USER), 0o077);
    assert_eq!(t.list(sub), "system.posix_acl_default\0");

    t.remove(dir, ACL_DEFAULT).unwrap();
    let f = t.make_masked(create_as(dir, "masked", 0o666, OTHER), 0o077);
    assert_eq!(t.mode(f), 0o600);
    check_books(&t.meta);
}

#[test]
fn privileges_go_with_a_change() {
    let mut t = Tree::new();
    let f = t.make(create(ROOT, "f"));
    let arm = |t: &mut Tree| {
        t.op(setattr(f, chmod(0o6755))).unwrap();
        t.set(f, CAPABILITY, b"caps").unwrap();
        t.set(f, b"user.a", b"stays").unwrap();
    };
    let gone = |t: &Tree, what: &str| {
        assert_eq!(t.list(f), "user.a\0", "{what}");
        assert_eq!(t.mode(f), 0o755, "{what}");
        assert!(t.attr(f).xattrs, "{what}");
    };
    arm(&mut t);
    let at = WriteAt::Offset(0);
    t.write_at(f, at, b"as root").0.unwrap();
    assert_eq!(t.list(f), "security.capability\0user.a\0");
    assert_eq!(t.mode(f), 0o6755);
    t.write_at(f, WriteAt::End, b"as root").0.unwrap();
    assert_eq!((t.list(f).as_str(), t.mode(f)), ("user.a\0", 0o6755));
    arm(&mut t);
    let write = |kill_priv| Op::Write {
        ino: f,
        at,
        kill_priv,
    };
    t.full(write(true), Payload::new(Bytes::from_static(b"x")))
        .0
        .unwrap();
    gone(&t, "write");
    arm(&mut t);
    let kill = |set| SetAttr {
        kill_priv: true,
        ..set
    };
    let attr = attr_of(t.op(setattr(f, kill(size(1)))));
    assert!(attr.xattrs);
    gone(&t, "truncate");
    arm(&mut t);
    t.remove(f, b"user.a").unwrap();
    let chown = SetAttr {
        uid: Some(7),
        ..SetAttr::default()
    };
    let attr = attr_of(t.op(setattr(f, kill(chown))));
    assert!(!attr.xattrs, "that was the last one");
    check_books(&t.meta);
}
