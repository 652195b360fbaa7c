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

//! mount_dfs(8): asks the running dfsd to attach or detach one mount of
//! dfsd.conf.  It never mounts anything itself, sends nothing but the number
//! of the mount, and never looks at a mount point: behind it may be a mount
//! that does not answer.

#![forbid(unsafe_code)]

#[path = "../getopt.rs"]
mod getopt;

use common::conf::{MountId, DEFAULTS};
use common::ctl::{CtlMount, CtlRep, CtlReq, CtlResult, CTL_FRAME_MAX};
use common::imsg::{ImsgError, Imsgbuf};
use common::sys::pledge::pledge;
use common::{fatal, fatalx, log};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};

type Channel = Imsgbuf<CtlReq, CtlRep>;

fn usage() -> ! {
    eprintln!("usage: mount_dfs [-u] [-s socket] directory");
    std::process::exit(1)
}

fn narrow(promises: &str) {
    if let Err(e) = pledge(promises, None) {
        fatal!(e, "pledge");
    }
}

fn main() {
    log::log_init("mount_dfs", true, false);
    // stdio: arguments and errors.  unix: the control socket.  rpath: what
    // the directories above a mount point are really called.
    narrow("stdio unix rpath");

    let (mut socket, mut unmount) = (DEFAULTS.socket.to_string(), false);
    let Some(args) = getopt::getopt(std::env::args_os().skip(1), "s:u") else {
        usage();
    };
    for (option, value) in args.options {
        match option {
            's' => socket = value,
            _ => unmount = true,
        }
    }
    let [directory] = &args.operands[..] else {
        usage();
    };

    let stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(e) => fatal!(e, "connect: {socket}"),
    };
    let mut channel = Channel::new(OwnedFd::from(stream), CTL_FRAME_MAX);
    let mounts = match show_mounts(&mut channel) {
        Ok(mounts) => mounts,
        Err(e) => fatal!(e, "{socket}"),
    };
    let wanted = absolute(Path::new(directory));
    let Some(id) = find(&mounts, &wanted) else {
        let point = wanted.display();
        fatalx!("{point}: not in dfsd.conf; add: mount \"{point}\" {{ }}");
    };
    // All that is left is the socket.
    narrow("stdio");

    let req = if unmount {
        CtlReq::Umount(id)
    } else {
        CtlReq::Mount(id)
    };
    match action(&mut channel, &req) {
        Ok(CtlResult::Ok) => (),
        Ok(result) => fatalx!("{directory}: {result}"),
        Err(e) => fatal!(e, "{socket}"),
    }
}

fn send(channel: &mut Channel, req: &CtlReq) -> Result<(), ImsgError> {
    channel.compose(req, 0, None, &[])?;
    Ok(channel.flush_blocking()?)
}

fn recv(channel: &mut Channel) -> Result<CtlRep, ImsgError> {
    let imsg = channel.recv_blocking()?;
    imsg.map(|imsg| imsg.msg).ok_or(ImsgError::Truncated)
}

fn show_mounts(channel: &mut Channel) -> Result<Vec<CtlMount>, ImsgError> {
    send(channel, &CtlReq::ShowMounts)?;
    let mut mounts = Vec::new();
    loop {
        match recv(channel)? {
            CtlRep::Mount(mount) => mounts.push(mount),
            CtlRep::Result(result) => fatalx!("{result}"),
            _ => return Ok(mounts),
        }
    }
}

fn action(channel: &mut Channel, req: &CtlReq) -> Result<CtlResult, ImsgError> {
    send(channel, req)?;
    loop {
        if let CtlRep::Result(result) = recv(channel)? {
            return Ok(result);
        }
    }
}

/// By the name that dfsd.conf has, or else by what both names really are.
fn find(mounts: &[CtlMount], wanted: &Path) -> Option<MountId> {
    let by = |same: &dyn Fn(&Path) -> bool| {
        let found = mounts.iter().find(|m| same(Path::new(&m.point)));
        found.map(|m| m.id)
    };
    by(&|point| point == wanted).or_else(|| {
        let wanted = real(wanted)?;
        by(&|point| real(point).as_ref() == Some(&wanted))
    })
}

/// Without "." and slashes too many, which mean nothing.
fn absolute(directory: &Path) -> PathBuf {
    let path = match std::env::current_dir() {
        Ok(cwd) => cwd.join(directory),
        Err(_) => directory.into(),
    };
    path.components()
        .filter(|c| *c != Component::CurDir)
        .collect()
}

/// Symbolic links resolved, but for the last component, which is not touched.
fn real(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?.canonicalize().ok()?;
    Some(parent.join(path.file_name()?))
}
