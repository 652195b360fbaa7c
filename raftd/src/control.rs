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

//! The control socket: serves dfsctl(8) and mount_dfs(8).  raftd only.  Who
//! a client is comes from the kernel; what it may ask depends on that.  A
//! client that sends nonsense is closed, and nothing else happens.

use crate::engine::Engine;
use crate::fs::lock::Wish;
use crate::fs::op::Op;
use crate::parent::Parent;
use crate::quota;
use crate::ready::{read_ready, readiness, write_ready};
use common::ctl::{CtlRep, CtlReq, CtlResult, CTL_FRAME_MAX};
use common::fs::{FsError, ReqId};
use common::imsg::{ImsgError, Imsgbuf, ReadStatus};
use common::lock::{LockKind, LockRange};
use common::msg::RaftdToParent;
use common::{log_debug, log_warn, sys};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

const CLIENTS_MAX: usize = 32;
/// Those that hold a lock or wait for one, beside the others.
const LOCK_CLIENTS_MAX: usize = 128;
/// A client that neither asks nor reads for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// The parent answers an action at the latest when a start has timed out.
const ACTION_MAX: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Control {
    engine: Arc<Engine>,
    parent: Arc<Parent>,
    /// Clients that wait for the parent.
    waiting: Arc<Mutex<HashMap<u32, oneshot::Sender<CtlResult>>>>,
    next: Arc<AtomicU32>,
    lock_slots: Arc<Semaphore>,
}

impl Control {
    pub fn new(engine: Arc<Engine>, parent: Arc<Parent>) -> Control {
        Control {
            engine,
            parent,
            waiting: Arc::default(),
            next: Arc::new(AtomicU32::new(1)),
            lock_slots: Arc::new(Semaphore::new(LOCK_CLIENTS_MAX)),
        }
    }

    /// Accepts for ever.
    pub async fn serve(self, listener: UnixListener) {
        let slots = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let client = match listener.accept().await {
                Ok((stream, _)) => stream.into_std().map(OwnedFd::from),
                Err(e) => Err(e),
            };
            match client {
                Ok(fd) => {
                    let control = self.clone();
                    tokio::spawn(async move {
                        if let Err(e) = control.serve_client(fd, slot).await {
                            log_debug!("control: {e}");
                        }
                    });
                }
                Err(e) => {
                    log_warn!(e, "accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve_client(&self, fd: OwnedFd, slot: OwnedSemaphorePermit) -> Result<(), ImsgError> {
        let (uid, _) = sys::socket::getpeereid(fd.as_fd())?;
        let mut client = Client {
            socket: readiness(&fd)?,
            imsgbuf: Imsgbuf::new(fd, CTL_FRAME_MAX),
        };
        while let Some(req) = client.next().await? {
            let reps = match (uid == 0 || req.is_show(), req) {
                (false, _) => vec![CtlRep::Result(CtlResult::Permission)],
                (true, CtlReq::Lock { path, pid, wait }) => {
                    return self.serve_lock(client, slot, path, pid, wait).await;
                }
                (true, req) => self.answer(req).await,
            };
            client.send(reps).await?;
        }
        Ok(())
    }

    async fn answer(&self, req: CtlReq) -> Vec<CtlRep> {
        let engine = &self.engine;
        match req {
            CtlReq::ShowSummary => {
                let mut reps = vec![CtlRep::Summary(engine.show_summary().await)];
                reps.extend(engine.show_peers().into_iter().map(CtlRep::Peer));
                reps.extend(engine.show_mounts().into_iter().map(CtlRep::Mount));
                ended(reps)
            }
            CtlReq::ShowPeers => ended(engine.show_peers().into_iter().map(CtlRep::Peer).collect()),
            CtlReq::ShowMounts => ended(
                engine
                    .show_mounts()
                    .into_iter()
                    .map(CtlRep::Mount)
                    .collect(),
            ),
            CtlReq::ShowLog => ended(vec![CtlRep::Log(engine.show_log())]),
            CtlReq::ShowLocks => ended(engine.show_locks().into_iter().map(CtlRep::Lock).collect()),
            CtlReq::CancelLock(ticket) => {
                let result = match timeout(ACTION_MAX, engine.locks().cancel(ticket)).await {
                    Ok(Ok(())) => CtlResult::Ok,
                    Ok(Err(FsError::NotFound)) => CtlResult::NoSuchWaiter,
                    _ => CtlResult::Failed,
                };
                vec![CtlRep::Result(result)]
            }
            // Has its own way, since the client stays.
            CtlReq::Lock { .. } => vec![CtlRep::Result(CtlResult::Failed)],
            CtlReq::LogVerbose(verbose) => {
                self.action(|client| RaftdToParent::CtlLogVerbose { client, verbose })
                    .await
            }
            CtlReq::Reload => {
                self.action(|client| RaftdToParent::CtlReload { client })
                    .await
            }
            CtlReq::Stop => {
                self.action(|client| RaftdToParent::CtlStop { client })
                    .await
            }
            CtlReq::Mount(mount) => {
                self.action(|client| RaftdToParent::CtlMount { client, mount })
                    .await
            }
            CtlReq::Umount(mount) => {
                self.action(|client| RaftdToParent::CtlUmount { client, mount })
                    .await
            }
            CtlReq::ShowQuota(path) => match quota::show(engine, path.as_deref()).await {
                Ok(quotas) => ended(quotas.into_iter().map(CtlRep::Quota).collect()),
                Err(result) => vec![CtlRep::Result(result)],
            },
            CtlReq::SetQuota {
                path,
                bytes,
                inodes,
            } => {
                let set = |ino| Op::SetQuota { ino, bytes, inodes };
                vec![CtlRep::Result(quota::change(engine, &path, set).await)]
            }
            CtlReq::DropQuota(path) => {
                let drop = |ino| Op::DropQuota { ino };
                vec![CtlRep::Result(quota::change(engine, &path, drop).await)]
            }
        }
    }

    /// From here on the client has the lock, or waits for it, as long as it
    /// stays; nothing else is heard from it.
    async fn serve_lock(
        &self,
        mut client: Client,
        slot: OwnedSemaphorePermit,
        path: String,
        pid: u32,
        wait: bool,
    ) -> Result<(), ImsgError> {
        let Ok(_lock_slot) = self.lock_slots.clone().try_acquire_owned() else {
            let full = CtlResult::Lock(FsError::NoLocks);
            return client.send(vec![CtlRep::Result(full)]).await;
        };
        drop(slot);
        let locks = self.engine.locks().clone();
        let (tx, mut events) = mpsc::unbounded_channel();
        let lost = tx.clone();
        let locker = locks.join(Box::new(move |_, _| {
            let _ = lost.send(CtlRep::LockLost);
            false
        }));
        let asked = async {
            let ino = match self.engine.find(Path::new(&path)).await {
                Ok(ino) => ino,
                Err(e) => return drop(tx.send(CtlRep::Result(CtlResult::Lock(e)))),
            };
            let wish = Wish {
                owner: 0,
                pid,
                range: LockRange::WHOLE,
                kind: LockKind::Exclusive,
            };
            let answer = tx.clone();
            let done = Box::new(move |_, result: Result<u64, FsError>| {
                drop(answer.send(match result {
                    Ok(fence) => CtlRep::Locked(fence),
                    Err(e) => CtlRep::Result(CtlResult::Lock(e)),
                }));
            });
            locks.lock((locker, ReqId(0)), ino, wish, wait, done).await;
        };
        asked.await;
        let served = client.serve_events(&mut events).await;
        locks.leave(locker);
        served
    }

    /// Has the parent do it, and waits for what it says.
    async fn action(&self, msg: impl FnOnce(u32) -> RaftdToParent) -> Vec<CtlRep> {
        let client = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        self.waiting().insert(client, tx);
        self.parent.send(&msg(client));
        let result = match timeout(ACTION_MAX, rx).await {
            Ok(Ok(result)) => result,
            _ => CtlResult::Failed,
        };
        self.waiting().remove(&client);
        vec![CtlRep::Result(result)]
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<CtlResult>>> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The parent's answer to an action; the client may have gone.
    pub fn result(&self, client: u32, result: CtlResult) {
        if let Some(tx) = self.waiting().remove(&client) {
            let _ = tx.send(result);
        }
    }
}

fn ended(mut reps: Vec<CtlRep>) -> Vec<CtlRep> {
    reps.push(CtlRep::End);
    reps
}

struct Client {
    imsgbuf: Imsgbuf<CtlRep, CtlReq>,
    socket: UnixStream,
}

impl Client {
    async fn next(&mut self) -> Result<Option<CtlReq>, ImsgError> {
        loop {
            if let Some(imsg) = self.imsgbuf.get()? {
                return Ok(Some(imsg.msg));
            }
            let read = timeout(IDLE_MAX, read_ready(&self.socket, || self.imsgbuf.read()));
            let status = read.await.map_err(io::Error::from)??;
            if status == ReadStatus::Closed {
                return Ok(None);
            }
        }
    }

    /// Passes on what happens until the client goes or has an error.
    async fn serve_events(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<CtlRep>,
    ) -> Result<(), ImsgError> {
        loop {
            let rep = tokio::select! {
                rep = events.recv() => rep,
                gone = self.gone() => return gone,
            };
            let Some(rep) = rep else {
                return Ok(());
            };
            let over = !matches!(rep, CtlRep::Locked(_));
            self.send(vec![rep]).await?;
            if over {
                return Ok(());
            }
        }
    }

    /// Waits for its end; whatever it says is one, too.
    async fn gone(&mut self) -> Result<(), ImsgError> {
        loop {
            if self.imsgbuf.get()?.is_some() {
                return Ok(());
            }
            let status = read_ready(&self.socket, || self.imsgbuf.read()).await?;
            if status == ReadStatus::Closed {
                return Ok(());
            }
        }
    }

    async fn send(&mut self, reps: Vec<CtlRep>) -> Result<(), ImsgError> {
        for rep in &reps {
            self.imsgbuf.compose(rep, 0, None, &[])?;
        }
        let written = timeout(IDLE_MAX, write_ready(&self.socket, || self.imsgbuf.write()));
        written.await.map_err(io::Error::from)??;
        Ok(())
    }
}
