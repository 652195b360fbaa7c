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
//! dfsd.conf, by hand or as the helper of mount(8).  It never mounts anything
//! itself, sends nothing but the number of the mount and what it takes for
//! granted of it, and never looks at a mount point: behind it may be a mount
//! that does not answer.

#![forbid(unsafe_code)]

#[path = "../getopt.rs"]
mod getopt;

use common::conf::{MountId, DEFAULTS};
use common::ctl::{CtlAttach, CtlMount, CtlRep, CtlReq, CtlResult, CtlSummary, CTL_FRAME_MAX};
use common::imsg::{ImsgError, Imsgbuf};
use common::sys::pledge::pledge;
use common::{fatal, fatalx, log};
use getopt::getopt;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

type Channel = Imsgbuf<CtlReq, CtlRep>;

/// At boot mount(8) may come a moment before dfsd has made its socket.
const SOCKET_WAIT: Duration = Duration::from_secs(5);

/// Linux's mount(8) looks for the helper of a type by this name, and has its
/// own idea of the arguments.
const LINUX_NAME: &str = "mount.dfs";

/// What fstab(5) can say that is so in any case, or is meant for mount(8) and
/// those who read fstab(5).  What dfsd.conf says can only be narrowed, so that
/// the opposite of a narrowing option is among these.
const IGNORED: [&str; 16] = [
    "",
    "_netdev",
    "async",
    "auto",
    "defaults",
    "diratime",
    "group",
    "net",
    "noauto",
    "nodiratime",
    "nofail",
    "nouser",
    "owner",
    "silent",
    "user",
    "users",
];

struct Options {
    attach: CtlAttach,
    directory: String,
    fake: bool,
    sloppy: bool,
    socket: String,
    /// What mount(8) says is mounted there; None when it was not mount(8).
    spec: Option<String>,
    unmount: bool,
    verbose: bool,
}

fn usage(linux: bool) -> ! {
    match linux {
        true => eprintln!(
            "usage: {LINUX_NAME} spec directory [-fnrsvw] [-N namespace] [-o options] [-t type]"
        ),
        false => eprintln!("usage: mount_dfs [-uv] [-o options] [-s socket] [spec] directory"),
    }
    std::process::exit(1)
}

fn narrow(promises: &str) {
    if let Err(e) = pledge(promises, None) {
        fatal!(e, "pledge");
    }
}

fn main() {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let linux = Path::new(&name)
        .file_name()
        .is_some_and(|n| n == LINUX_NAME);
    log::log_init(if linux { LINUX_NAME } else { "mount_dfs" }, true, false);
    // stdio: arguments and errors.  unix: the control socket.  rpath: what
    // the directories above a mount point are really called.
    narrow("stdio unix rpath");
    let options = match linux {
        true => options_linux(args),
        false => options_bsd(args),
    };
    let directory = &options.directory;

    let stream = match connect(&options) {
        Ok(stream) => stream,
        Err(e) => fatal!(e, "connect: {}", options.socket),
    };
    let mut channel = Channel::new(OwnedFd::from(stream), CTL_FRAME_MAX);
    let shown = match show(&mut channel, options.spec.is_some()) {
        Ok(shown) => shown,
        Err(e) => fatal!(e, "{}", options.socket),
    };
    let wanted = absolute(Path::new(directory));
    let Some(mount) = find(&shown.mounts, &wanted) else {
        let point = wanted.display();
        fatalx!("{point}: not in dfsd.conf; add: mount \"{point}\" {{ }}");
    };
    if let (Some(spec), Some(summary)) = (&options.spec, &shown.summary) {
        if let Err(e) = agrees(spec, &summary.cluster, mount) {
            fatalx!("{spec}: {e}");
        }
    }
    // All that is left is the socket.
    narrow("stdio");
    if options.fake {
        return;
    }

    let req = match options.unmount {
        true => CtlReq::Umount(mount.id),
        false => CtlReq::Mount(CtlAttach {
            mount: mount.id,
            ..options.attach
        }),
    };
    match action(&mut channel, &req) {
        Ok(CtlResult::Ok) => (),
        // mount(8) wants it mounted, and it is.
        Ok(result @ CtlResult::AlreadyMounted) if options.spec.is_some() => {
            if options.verbose {
                println!("{directory}: {result}");
            }
        }
        Ok(result) => fatalx!("{directory}: {result}"),
        Err(e) => fatal!(e, "{}", options.socket),
    }
}

impl Options {
    fn new() -> Options {
        Options {
            attach: CtlAttach::as_is(MountId(0)),
            directory: String::new(),
            fake: false,
            sloppy: false,
            socket: DEFAULTS.socket.into(),
            spec: None,
            unmount: false,
            verbose: false,
        }
    }

    /// The options of one -o, as fstab(5) has them.
    fn mount_options(&mut self, list: &str) {
        for word in list.split(',') {
            let known = match word.split_once('=') {
                Some(("socket", path)) => {
                    self.socket = path.into();
                    true
                }
                _ => self.attach_option(word) || is_ignored(word),
            };
            if matches!(word, "remount" | "update") {
                fatalx!("{word}: change dfsd.conf and use: dfsctl reload");
            }
            if !known && !self.sloppy {
                fatalx!("{word}: unknown option");
            }
        }
    }

    /// Of an option and its opposite the last one counts.
    fn attach_option(&mut self, word: &str) -> bool {
        let (option, value) = match word {
            "ro" | "rdonly" => (&mut self.attach.read_only, true),
            "rw" => (&mut self.attach.read_only, false),
            "nosuid" => (&mut self.attach.nosuid, true),
            "suid" => (&mut self.attach.nosuid, false),
            "nodev" => (&mut self.attach.nodev, true),
            "dev" => (&mut self.attach.nodev, false),
            "noexec" => (&mut self.attach.noexec, true),
            "exec" => (&mut self.attach.noexec, false),
            "noatime" => (&mut self.attach.noatime, true),
            "atime" | "relatime" => (&mut self.attach.noatime, false),
            _ => return false,
        };
        *option = value;
        true
    }
}

/// What a program that reads fstab(5) keeps there for itself as well.
fn is_ignored(word: &str) -> bool {
    let prefixes = ["x-", "X-", "comment="];
    IGNORED.contains(&word) || prefixes.iter().any(|prefix| word.starts_with(prefix))
}

/// As a command, and as the mount(8) of BSD runs it: options first.
fn options_bsd(args: impl Iterator<Item = OsString>) -> Options {
    let Some(args) = getopt(args, "o:s:uv") else {
        usage(false);
    };
    let mut options = Options::new();
    for (option, value) in args.options {
        match option {
            'o' => options.mount_options(&value),
            's' => options.socket = value,
            'u' => options.unmount = true,
            _ => options.verbose = true,
        }
    }
    match &args.operands[..] {
        [directory] => options.directory = directory.clone(),
        [spec, directory] if !options.unmount => {
            options.spec = Some(spec.clone());
            options.directory = directory.clone();
        }
        _ => usage(false),
    }
    options
}

/// As the mount(8) of Linux runs it: the operands first, then the options.
fn options_linux(args: impl Iterator<Item = OsString>) -> Options {
    let mut options = Options::new();
    let (mut operands, mut lists) = (Vec::new(), Vec::new());
    let mut rest: Vec<OsString> = args.collect();
    while !rest.is_empty() {
        let Some(args) = getopt(rest, "fN:no:rst:vw") else {
            usage(true);
        };
        for (option, value) in args.options {
            match option {
                'f' => options.fake = true,
                'N' => fatalx!("-N: dfsd mounts where it runs"),
                'o' => lists.push(value),
                'r' => lists.push("ro".into()),
                's' => options.sloppy = true,
                't' if value != "dfs" => fatalx!("-t: {value}: not dfs"),
                'v' => options.verbose = true,
                'w' => lists.push("rw".into()),
                // There is no other table of mounts than the kernel's.
                _ => (),
            }
        }
        let mut args = args.operands.into_iter();
        operands.extend(args.next());
        rest = args.map(OsString::from).collect();
    }
    for list in lists {
        options.mount_options(&list);
    }
    let Ok([spec, directory]) = <[String; 2]>::try_from(operands) else {
        usage(true);
    };
    options.spec = Some(spec);
    options.directory = directory;
    options
}

/// On behalf of mount(8) it waits for dfsd a little.
fn connect(options: &Options) -> io::Result<UnixStream> {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(&options.socket) {
            Err(e)
                if options.spec.is_some()
                    && begun.elapsed() < SOCKET_WAIT
                    && matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
            {
                sleep(Duration::from_millis(100));
            }
            other => return other,
        }
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

#[derive(Default)]
struct Shown {
    summary: Option<CtlSummary>,
    mounts: Vec<CtlMount>,
}

/// The mounts; with the summary, which has the name of the cluster, it can
/// take a moment.
fn show(channel: &mut Channel, summary: bool) -> Result<Shown, ImsgError> {
    let req = match summary {
        true => CtlReq::ShowSummary,
        false => CtlReq::ShowMounts,
    };
    send(channel, &req)?;
    let mut shown = Shown::default();
    loop {
        match recv(channel)? {
            CtlRep::Summary(summary) => shown.summary = Some(summary),
            CtlRep::Mount(mount) => shown.mounts.push(mount),
            CtlRep::Result(result) => fatalx!("{result}"),
            CtlRep::End => return Ok(shown),
            _ => (),
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

/// Whether a spec, which is `cluster` or `cluster:/subtree`, means that mount.
fn agrees(spec: &str, cluster: &str, mount: &CtlMount) -> Result<(), String> {
    if spec == cluster {
        return Ok(());
    }
    // The name of a cluster may have a colon as well.
    let subtree = spec.strip_prefix(cluster).and_then(|s| s.strip_prefix(':'));
    let Some(subtree) = subtree.filter(|subtree| subtree.starts_with('/')) else {
        return Err(format!("the cluster of this node is \"{cluster}\""));
    };
    if Path::new(subtree) != Path::new(&mount.subtree) {
        return Err(format!(
            "{} has subtree \"{}\" in dfsd.conf",
            mount.point, mount.subtree
        ));
    }
    Ok(())
}

/// By the name that dfsd.conf has, or else by what both names really are.
fn find<'a>(mounts: &'a [CtlMount], wanted: &Path) -> Option<&'a CtlMount> {
    let by = |same: &dyn Fn(&Path) -> bool| mounts.iter().find(|m| same(Path::new(&m.point)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use common::ctl::MountState;

    fn args<'a>(line: &'a str) -> impl Iterator<Item = OsString> + 'a {
        line.split(' ').map(OsString::from)
    }

    fn narrowed(options: &Options) -> String {
        let a = options.attach;
        let all = [
            (a.read_only, "ro "),
            (a.nosuid, "nosuid "),
            (a.nodev, "nodev "),
            (a.noexec, "noexec "),
            (a.noatime, "noatime "),
        ];
        all.iter().filter(|(on, _)| *on).map(|(_, s)| *s).collect()
    }

    #[test]
    fn by_hand_and_by_bsd() {
        let o = options_bsd(args("-s /sock -u /mnt"));
        assert_eq!((o.socket.as_str(), o.unmount), ("/sock", true));
        assert_eq!((o.spec, o.directory.as_str()), (None, "/mnt"));
        // Each option comes with an -o of its own.
        let o = options_bsd(args("-o rw -o nodev -o noauto prod /dfs"));
        assert_eq!(narrowed(&o), "nodev ");
        assert_eq!(o.spec.as_deref(), Some("prod"));
        assert_eq!(o.directory, "/dfs");
    }

    #[test]
    fn by_linux() {
        let o = options_linux(args(
            "prod:/www /var/www -v -n -o rw,noexec,_netdev,x-systemd.requires=dfsd.service",
        ));
        assert_eq!(o.spec.as_deref(), Some("prod:/www"));
        assert_eq!(o.directory, "/var/www");
        assert_eq!(
            (narrowed(&o).as_str(), o.verbose, o.fake),
            ("noexec ", true, false)
        );
        let o = options_linux(args("-sfo nosense,socket=/s -r prod -t dfs /dfs"));
        assert_eq!((o.fake, o.sloppy, o.socket.as_str()), (true, true, "/s"));
        assert_eq!(
            (narrowed(&o).as_str(), o.directory.as_str()),
            ("ro ", "/dfs")
        );
    }

    #[test]
    fn the_last_option_counts() {
        let mut o = Options::new();
        o.mount_options("ro,rw,nosuid,nodev,noexec,defaults,exec,,comment=a");
        assert_eq!(narrowed(&o), "nosuid nodev ");
        o.mount_options("noatime,nodiratime");
        assert_eq!(narrowed(&o), "nosuid nodev noatime ");
        o.mount_options("relatime");
        assert_eq!(narrowed(&o), "nosuid nodev ");
    }

    #[test]
    fn spec() {
        let mount = CtlMount {
            id: MountId(0),
            point: "/var/www".into(),
            subtree: "/www".into(),
            read_only: false,
            open: 0,
            state: MountState::Serving,
        };
        for spec in ["a:b", "a:b:/www", "a:b:/www/"] {
            assert_eq!(agrees(spec, "a:b", &mount), Ok(()));
        }
        let not = Err("/var/www has subtree \"/www\" in dfsd.conf".into());
        assert_eq!(agrees("a:b:/", "a:b", &mount), not);
        let not = Err("the cluster of this node is \"a:b\"".into());
        for spec in ["a", "a:/www", "a:b:", "a:b:www", "a:bc", ""] {
            assert_eq!(agrees(spec, "a:b", &mount), not);
        }
    }
}
