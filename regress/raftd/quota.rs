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
//! Quotas, as apply decides them: limits exact to the block, who is charged,
//! names that must stay in their tree, and the counting of what was there
//! before, whatever changes meanwhile.

use super::*;
use raftd::fs::quota::{self, Quota};
use FsError::{CrossTree, NoSpace, NotFound, Quota as Over};

const B: usize = BLOCK as usize;

fn set(ino: InodeNo, blocks: u64, inodes: u64) -> Op {
    Op::SetQuota {
        ino,
        bytes: Some(blocks * BLOCK),
        inodes: Some(inodes),
    }
}

fn quota_at(t: &Tree, ino: InodeNo) -> Option<Quota> {
    let v = t.meta.read();
    quota::of(&v, &inode::load(&v, ino).unwrap()).unwrap()
}

/// Blocks and inodes of the tree that the inode is in.
fn used(t: &Tree, ino: InodeNo) -> (u64, u64) {
    let quota = quota_at(t, ino).unwrap();
    (quota.used_blocks, quota.used_inodes)
}

/// Has everything counted, some entries at a time.
fn count_all(t: &mut Tree, max: u32) -> u32 {
    for n in 0.. {
        let unfinished = quota::unfinished(&t.meta.read()).unwrap();
        let Some(tree) = unfinished else {
            return n;
        };
        t.op(Op::Adopt { tree, max }).unwrap();
    }
    0
}

/// All inodes with a name at or beneath the directory.
fn beneath(v: &View<'_>, ino: InodeNo) -> Vec<(InodeNo, Inode)> {
    let inode = inode::load(v, ino).unwrap();
    let mut all = Vec::new();
    if inode.is_dir() {
        let (entries, _) = dirent::readdir(v, ino, Cookie(2), usize::MAX, false).unwrap();
        all = entries.iter().flat_map(|e| beneath(v, e.ino)).collect();
    }
    all.push((ino, inode));
    all
}

/// What a quota says is what the inodes of its tree take; once all is counted
/// nothing beneath its directory is left out.
pub fn check_books(v: &View<'_>, inodes: &BTreeMap<InodeNo, Inode>) {
    let unfinished: Vec<u64> = dump(v)
        .iter()
        .filter(|(k, _)| k[0] == b'a')
        .map(|(k, _)| u64::from_be_bytes(k[1..9].try_into().unwrap()))
        .collect();
    for quota in quota::list(v).unwrap() {
        let tree = inodes[&quota.root].tree;
        let members = inodes.values().filter(|i| i.tree == tree);
        let (blocks, count) = members.fold((0, 0), |(b, n), i| (b + i.blocks(), n + 1));
        assert_eq!((quota.used_blocks, quota.used_inodes), (blocks, count));
        assert_eq!(quota.counting, unfinished.contains(&tree.0));
        if quota.counting {
            continue;
        }
        for (ino, inode) in beneath(v, quota.root) {
            // A file that another tree had before keeps that.
            let kept = !inode.is_dir() && inode.tree != TreeNo::NONE;
            assert!(inode.tree == tree || kept, "{ino} {inode:?}");
        }
    }
}

#[test]
fn limits_are_exact() {
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    t.op(set(d, 5, 4)).unwrap();
    assert_eq!(used(&t, d), (0, 1));
    let f = t.make(create(d, "f"));
    let s = t.make(mkdir(d, "s"));
    let g = t.make(create(s, "g"));
    let before = dump(&t.meta.read());
    assert_eq!(t.op(create(s, "h")), Err(Over));
    assert_eq!(t.op(mkdir(d, "h")), Err(Over));
    assert_eq!(t.op(symlink(d, "h", "t")), Err(Over));
    assert_eq!(t.op(mknod(d, "h", 0o010600)), Err(Over));
    assert!(before == dump(&t.meta.read()), "a refusal left a trace");
    t.op(link(g, d, "h")).unwrap();
    assert_eq!(used(&t, d), (0, 4));
    t.make(create(ROOT, "free"));

    // A small file is charged like any other, and moves out for nothing.
    t.write(f, 0, 100).0.unwrap();
    assert_eq!((used(&t, d), t.attr(f).blocks), ((1, 4), 8));
    t.write(f, 0, INLINE_MAX + 1).0.unwrap();
    assert_eq!((used(&t, d), t.attr(f).blocks), ((1, 4), 8));
    t.write(g, 0, 4 * B).0.unwrap();
    let before = dump(&t.meta.read());
    assert_eq!(t.write(g, 4 * BLOCK, 1).0, Err(Over));
    assert_eq!(t.write(g, 3 * BLOCK, B + 1).0, Err(Over));
    assert!(before == dump(&t.meta.read()), "a refusal left a trace");
    // What is there can be written over, what is a hole stays one.
    t.write(g, 0, 4 * B).0.unwrap();
    t.op(setattr(g, size(1 << 30))).unwrap();
    t.op(setattr(g, size(4 * BLOCK))).unwrap();
    t.op(unlink(d, "f")).unwrap();
    t.write(g, 4 * BLOCK, B).0.unwrap();
    let i = t.make(create(d, "i"));
    assert_eq!(t.write(i, 0, 1).0, Err(Over));
    assert_eq!(t.op(setattr(i, size(10))), Err(Over));
    t.op(setattr(g, size(4 * BLOCK))).unwrap();
    t.op(setattr(i, size(10))).unwrap();
    t.op(setattr(i, size(0))).unwrap();
    assert_eq!(used(&t, d), (4, 4));

    // Less than there is already: nothing more, and no harm.
    t.op(set(d, 1, 1)).unwrap();
    assert_eq!(t.write(i, 0, 1).0, Err(Over));
    assert_eq!(t.op(create(d, "j")), Err(Over));
    t.write(g, 0, 4 * B).0.unwrap();
    t.op(unlink(s, "g")).unwrap();
    assert_eq!(used(&t, d), (4, 4));
    t.op(unlink(d, "h")).unwrap();
    assert_eq!(used(&t, d), (0, 3));
    check_books_of(&t);

    // One limit changes, the other stays; 0 is none.
    let (bytes, inodes) = (Some(7), None);
    t.op(Op::SetQuota {
        ino: d,
        bytes,
        inodes,
    })
    .unwrap();
    let limit = quota_at(&t, d).unwrap().limit;
    assert_eq!((limit.bytes, limit.inodes), (7, 1));
    t.op(set(d, 0, 0)).unwrap();
    t.write(i, 0, 100 * B).0.unwrap();
}

fn check_books_of(t: &Tree) {
    super::check_books(&t.meta);
}

#[test]
fn the_whole_has_a_limit() {
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    t.op(set(d, 10, 0)).unwrap();
    t.op(set(ROOT, 4, 4)).unwrap();
    let f = t.make(create(d, "f"));
    let g = t.make(create(ROOT, "g"));
    assert_eq!(t.op(create(ROOT, "h")), Err(Over));
    t.write(g, 0, 10).0.unwrap();
    t.write(f, 0, 3 * B).0.unwrap();
    assert_eq!(t.write(f, 3 * BLOCK, 1).0, Err(Over));
    // Room is another thing.
    t.op(set(ROOT, 1000, 0)).unwrap();
    let (node, bytes, inodes) = (NodeId(1), 8 * BLOCK, 100);
    t.op(Op::Capacity {
        node,
        bytes,
        inodes,
    })
    .unwrap();
    assert_eq!(t.write(f, 3 * BLOCK, 2 * B).0, Err(NoSpace));
    assert_eq!(t.write(f, 3 * BLOCK, 8 * B).0, Err(Over));
    t.op(Op::DropQuota { ino: ROOT }).unwrap();
    t.op(Op::DropQuota { ino: d }).unwrap();
    assert_eq!(t.write(f, 3 * BLOCK, 8 * B).0, Err(NoSpace));
    check_books_of(&t);
}

#[test]
fn statfs_tells_the_least() {
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    let s = t.make(mkdir(d, "s"));
    let f = t.make(create(s, "f"));
    t.write(f, 0, 3 * B).0.unwrap();
    let statfs = |t: &Tree, dir| {
        let s = space::statfs(&t.meta.read(), dir).unwrap();
        let blocks = (s.bytes / BLOCK, s.bytes_free / BLOCK);
        (blocks.0, blocks.1, s.inodes, s.inodes_free)
    };
    let (node, bytes, inodes) = (NodeId(1), 100 * BLOCK, 50);
    t.op(Op::Capacity {
        node,
        bytes,
        inodes,
    })
    .unwrap();
    // Four inodes, and one such piece of extents.
    let whole = (3 + 92, 92, 49, 45);
    assert_eq!(statfs(&t, ROOT), whole);
    assert_eq!(statfs(&t, s), whole);
    t.op(set(d, 10, 20)).unwrap();
    count_all(&mut t, 10);
    assert_eq!(statfs(&t, ROOT), whole);
    assert_eq!(statfs(&t, d), (10, 7, 20, 17));
    assert_eq!(statfs(&t, s), (10, 7, 20, 17));
    t.op(set(d, 1000, 0)).unwrap();
    assert_eq!(statfs(&t, s), whole);
    t.op(set(ROOT, 50, 5)).unwrap();
    assert_eq!(statfs(&t, s), (50, 47, 5, 1));
    t.op(set(d, 2, 1)).unwrap();
    assert_eq!(statfs(&t, s), (2, 0, 1, 0));
    assert_eq!(statfs(&t, InodeNo(999)), (50, 47, 5, 1));
}

#[test]
fn orphans_are_charged_until_they_are_free() {
    let mut t = Tree::new();
    let session = t.session(1, 1);
    let d = t.make(mkdir(ROOT, "d"));
    t.op(set(d, 3, 3)).unwrap();
    let f = t.make(create(d, "f"));
    t.write(f, 0, 2 * B).0.unwrap();
    t.op(unlink(d, "f")).unwrap();
    assert_eq!(used(&t, d), (2, 2));
    t.write(f, 2 * BLOCK, B).0.unwrap();
    assert_eq!(t.write(f, 3 * BLOCK, 1).0, Err(Over));
    let origin = Some(Origin {
        session,
        seq: 1,
        acked: 0,
    });
    let cmd = Command {
        origin,
        time: time(9),
        op: Op::Release { inodes: vec![f] },
        payload: Payload::none(),
    };
    assert_eq!(t.apply(&cmd).0, Verdict::Done(Ok(Reply::Done)));
    assert_eq!(used(&t, d), (0, 1));

    // The directory itself is removed, and takes its quota along.
    t.op(rmdir(ROOT, "d")).unwrap();
    assert_eq!(quota::list(&t.meta.read()).unwrap().len(), 1);
    t.session(1, 2);
    assert_eq!(quota::list(&t.meta.read()).unwrap(), []);
    check_books_of(&t);
}

#[test]
fn names_stay_in_their_tree() {
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    let e = t.make(mkdir(ROOT, "e"));
    let o = t.make(mkdir(ROOT, "o"));
    t.op(set(d, 0, 0)).unwrap();
    t.op(set(e, 0, 0)).unwrap();
    let ds = t.make(mkdir(d, "s"));
    let df = t.make(create(d, "f"));
    t.make(create(e, "f"));
    let of = t.make(create(o, "f"));
    t.make(mkdir(o, "s"));
    let exchange = RenameHow::Exchange;
    let before = dump(&t.meta.read());
    for op in [
        rename(d, "f", e, "g"),
        rename(d, "f", o, "g"),
        rename(d, "f", e, "f"),
        rename(o, "f", d, "g"),
        rename(o, "f", ds, "g"),
        rename(o, "s", d, "t"),
        rename(d, "s", ROOT, "t"),
        rename_how(d, "f", e, "f", exchange),
        rename_how(o, "f", d, "f", exchange),
        rename_how(ROOT, "o", d, "f", exchange),
        link(df, e, "g"),
        link(df, o, "g"),
        link(of, d, "g"),
        // One quota beneath another.
        rename(ROOT, "e", d, "e"),
        rename(ROOT, "e", ds, "e"),
        rename_how(ROOT, "e", d, "s", exchange),
        set(ds, 1, 1),
    ] {
        assert_eq!(t.op(op.clone()), Err(CrossTree), "{op:?}");
    }
    assert!(before == dump(&t.meta.read()), "a refusal left a trace");
    t.op(rename(d, "f", ds, "f")).unwrap();
    t.op(rename_how(d, "s", ds, "f", exchange)).unwrap_err();
    t.op(link(df, d, "f")).unwrap();
    t.op(rename_how(ds, "f", d, "f", exchange)).unwrap();
    // The directory with the quota may move, and nothing changes.
    t.op(rename(ROOT, "e", o, "e")).unwrap();
    t.op(rename_how(o, "e", ROOT, "d", exchange)).unwrap();
    assert_eq!(t.op(set(o, 1, 1)), Err(CrossTree));
    assert_eq!((used(&t, d), used(&t, e)), ((0, 3), (0, 2)));
    assert_eq!(t.op(Op::DropQuota { ino: ds }), Err(NotFound));
    assert_eq!(t.op(Op::DropQuota { ino: o }), Err(NotFound));
    assert_eq!(t.op(set(df, 1, 1)), Err(FsError::NotDir));
    assert_eq!(t.op(set(InodeNo(999), 1, 1)), Err(FsError::Stale));
    // Without quotas they are like any others.
    t.op(Op::DropQuota { ino: d }).unwrap();
    t.op(rename(d, "s", ROOT, "s")).unwrap();
    t.op(set(o, 1, 1)).unwrap();
    check_books_of(&t);
}

#[test]
fn a_quota_set_again_counts_again() {
    let mut t = Tree::new();
    let d = t.make(mkdir(ROOT, "d"));
    let s = t.make(mkdir(d, "s"));
    for n in 0..20 {
        let f = t.make(create(s, &format!("{n}")));
        t.write(f, 0, 2 * B).0.unwrap();
    }
    for _ in 0..3 {
        t.op(set(d, 0, 0)).unwrap();
        assert!(quota_at(&t, d).unwrap().counting);
        t.op(Op::Adopt {
            tree: t.tree(d),
            max: 5,
        })
        .unwrap();
        assert!(quota_at(&t, d).unwrap().counting);
        check_books_of(&t);
        t.op(Op::DropQuota { ino: d }).unwrap();
        check_books_of(&t);
    }
    t.op(set(d, 30, 0)).unwrap();
    count_all(&mut t, 7);
    assert_eq!(used(&t, d), (40, 22));
    assert!(!quota_at(&t, d).unwrap().counting);
    let left = dump(&t.meta.read()).iter().any(|(k, _)| k[0] == b'a');
    assert!(!left, "a walk of nobody");
    check_books_of(&t);
}

/// Whatever goes on meanwhile, in the end everything beneath is counted, and
/// nothing else.
#[test]
fn counting_while_things_change() {
    let (mut changes, mut crossed) = (0, 0);
    for seed in 0..40 {
        let mut t = Tree::new();
        let mut rng = Rng(seed);
        let d = t.make(mkdir(ROOT, "d"));
        let o = t.make(mkdir(ROOT, "o"));
        let mut dirs = vec![d, o];
        for n in 0..60 {
            let dir = dirs[rng.below(dirs.len() as u64) as usize];
            match rng.below(3) {
                0 => dirs.push(t.make(mkdir(dir, &format!("n{n}")))),
                _ => {
                    let f = t.make(create(dir, &format!("n{n}")));
                    t.write(f, 0, rng.below(3) as usize * B).0.unwrap();
                }
            }
        }
        t.op(set(d, 0, 0)).unwrap();
        for n in 0.. {
            let unfinished = quota::unfinished(&t.meta.read()).unwrap();
            let Some(tree) = unfinished else {
                break;
            };
            t.op(Op::Adopt { tree, max: 1 }).unwrap();
            for k in 0..6 {
                let any = |rng: &mut Rng| dirs[rng.below(dirs.len() as u64) as usize];
                let (from, to) = (any(&mut rng), any(&mut rng));
                let name = |rng: &mut Rng| format!("n{}", rng.below(60));
                let op = match rng.below(8) {
                    0 => create(to, &format!("c{n}.{k}")),
                    1 => mkdir(to, &format!("c{n}.{k}")),
                    2 => unlink(from, &name(&mut rng)),
                    3 => rename_how(
                        from,
                        &name(&mut rng),
                        to,
                        &name(&mut rng),
                        RenameHow::Exchange,
                    ),
                    _ => rename(from, &name(&mut rng), to, &name(&mut rng)),
                };
                match t.op(op.clone()) {
                    Ok(Reply::Entry { attr, .. }) if attr.is_dir() => dirs.push(attr.ino),
                    Ok(Reply::Entry { attr, .. }) => {
                        t.write(attr.ino, 0, B).0.unwrap();
                    }
                    Ok(_) => changes += 1,
                    Err(CrossTree) => {
                        crossed += 1;
                        let Op::Rename {
                            parent, new_parent, ..
                        } = op
                        else {
                            panic!("{op:?}")
                        };
                        assert_ne!(parent, new_parent, "never within a directory");
                    }
                    Err(_) => {}
                }
            }
            if n % 7 == 0 {
                check_books_of(&t);
            }
        }
        check_books_of(&t);
        let v = t.meta.read();
        let tree = inode::load(&v, d).unwrap().tree;
        let inside = beneath(&v, d);
        assert!(inside.iter().all(|(_, i)| i.tree == tree), "seed {seed}");
        let blocks = inside.iter().map(|(_, i)| i.blocks()).sum::<u64>();
        drop(v);
        assert_eq!(used(&t, d), (blocks, inside.len() as u64), "seed {seed}");
    }
    assert!(changes > 100 && crossed > 20, "{changes} {crossed}");
}

impl Tree {
    fn tree(&self, ino: InodeNo) -> TreeNo {
        inode::load(&self.meta.read(), ino).unwrap().tree
    }
}
