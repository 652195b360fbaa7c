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

//! dfsctl(8): sends one request to raftd over the control socket and prints
//! what comes back.  It decides nothing: who may ask for what is raftd's to
//! say, by the credentials of the socket.

#![forbid(unsafe_code)]

#[path = "../../getopt.rs"]
mod getopt;
mod lock;
mod output;
mod parser;

use common::conf::DEFAULTS;
use common::ctl::{CtlRep, CtlReq, CtlResult, CTL_FRAME_MAX};
use common::imsg::{ImsgError, Imsgbuf};
use common::sys::pledge::pledge;
use common::{fatal, fatalx, log, log_warn};
use output::Records;
use parser::Parsed;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

type Channel = Imsgbuf<CtlReq, CtlRep>;

fn usage() -> ! {
    eprintln!("usage: dfsctl [-j] [-s socket] command [argument ...]");
    std::process::exit(1)
}

fn narrow(promises: &str) {
    if let Err(e) = pledge(promises, None) {
        fatal!(e, "pledge");
    }
}

fn main() -> ExitCode {
    log::log_init("dfsctl", true, false);
    // stdio: arguments and errors.  rpath: the working directory, where a path
    // is relative to it.  unix: the control socket.  proc, exec: the command of
    // dfsctl lock.
    narrow("stdio rpath unix proc exec");

    let (mut socket, mut as_json) = (DEFAULTS.socket.to_string(), false);
    let Some(args) = getopt::getopt(std::env::args_os().skip(1), "js:") else {
        usage();
    };
    for (option, value) in args.options {
        match option {
            'j' => as_json = true,
            _ => socket = value,
        }
    }
    let req = match parser::parse(&args.operands) {
        Ok(Parsed::Ask(req)) => req,
        Ok(Parsed::Lock(words)) => match lock::parse(words) {
            Some(lock) => return run_locked(&lock, &socket),
            None => return lock::usage(),
        },
        Err(invalid) => {
            eprintln!("{invalid}");
            return ExitCode::FAILURE;
        }
    };
    narrow("stdio unix");
    let stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(e) => fatal!(e, "connect: {socket}"),
    };
    // All that is left is the socket and what is printed.
    narrow("stdio");

    let mut channel = Channel::new(OwnedFd::from(stream), CTL_FRAME_MAX);
    match ask(&mut channel, &req) {
        Err(e) => fatal!(e, "{socket}"),
        Ok(Answer::Closed) => fatalx!("{socket}: closed"),
        Ok(Answer::Result(CtlResult::Ok)) => {
            print("ok\n");
            ExitCode::SUCCESS
        }
        Ok(Answer::Result(result)) => fatalx!("{}: {result}", args.operands.join(" ")),
        Ok(Answer::Records(records)) => {
            print(&if as_json {
                output::json(&req, &records)
            } else {
                output::columns(&req, &records)
            });
            exit_code(&req, &records)
        }
    }
}

fn run_locked(lock: &lock::Lock, socket: &str) -> ExitCode {
    let opened = UnixStream::connect(socket).and_then(|s| Ok((s.try_clone()?, s)));
    match opened {
        Ok((own, stream)) => {
            let mut channel = Channel::new(OwnedFd::from(stream), CTL_FRAME_MAX);
            lock.run(&mut channel, &own, socket)
        }
        Err(e) => {
            log_warn!(e, "dfsctl: connect: {socket}");
            lock::unavailable()
        }
    }
}

enum Answer {
    Records(Box<Records>),
    Result(CtlResult),
    Closed,
}

fn ask(channel: &mut Channel, req: &CtlReq) -> Result<Answer, ImsgError> {
    channel.compose(req, 0, None, &[])?;
    channel.flush_blocking()?;
    let mut records = Box::<Records>::default();
    while let Some(imsg) = channel.recv_blocking()? {
        match imsg.msg {
            CtlRep::Summary(summary) => records.summary = Some(summary),
            CtlRep::Peer(peer) => records.peers.push(peer),
            CtlRep::Mount(mount) => records.mounts.push(mount),
            CtlRep::Log(log) => records.log = Some(log),
            CtlRep::Quota(quota) => records.quotas.push(quota),
            CtlRep::Lock(lock) => records.locks.push(lock),
            // To dfsctl lock alone.
            CtlRep::Locked(_) | CtlRep::LockLost => return Ok(Answer::Closed),
            CtlRep::End => return Ok(Answer::Records(records)),
            CtlRep::Result(result) => return Ok(Answer::Result(result)),
        }
    }
    Ok(Answer::Closed)
}

/// A status that is not as it should be is for scripts to see.
fn exit_code(req: &CtlReq, records: &Records) -> ExitCode {
    let well = match (req, &records.summary) {
        (CtlReq::ShowSummary, Some(summary)) => summary.quorum && summary.current,
        (CtlReq::ShowSummary, None) => false,
        _ => true,
    };
    if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A reader that has seen enough is no error.
fn print(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => fatal!(e, "stdout"),
        _ => (),
    }
}
