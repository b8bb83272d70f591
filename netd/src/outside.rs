//! What a process in the sandbox asks of the host: a fixed set of requests, and who answers them.
//!
//! # Theory of operation
//!
//! A sandboxed process sees none of the host's files and processes. What it has to know of them while
//! it runs it asks of a process outside ([`cnet_tap::helper::outside`]), or, without a sandbox, of
//! itself: both ways lead through [`Scope::answer`].
//!
//! # Invariants
//!
//! - [`HostFiles`]: no request names a path. Which files there are is said before the sandbox is
//!   entered; code that breaks into the process learns what is in `resolv.conf` and nothing else.
//! - A network's process ([`Scope::Network`]) names paths and descriptors that clients have sent it.
//!   What it gets for them are namespaces, the identity of files, sockets for virtual machines where
//!   there was no file, and the name of the program that has a port; it removes sockets that were made
//!   for it, and nothing else.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cnet::control::{Kind, Refusal};
use cnet::definition::{Directories, HostRoutes};
use cnet_tap::TapError;
use cnet_tap::helper::Output;
use cnet_tap::helper::outside::{Outside, Reach, Server};
use cnet_tap::watch::PathWatch;
use cnet_wire::Protocol;
use ipnet::IpNet;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::dns::resolv_conf;
use crate::holder::holder;
use crate::journal::{Liveness, Record};
use crate::liveness::{End, Pinned};
use crate::peer;
use crate::vm_endpoint::{self, SocketIdentity, Sockets};

/// Device and inode of a file.
pub type Identity = (u64, u64);

/// What may be asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Request {
    /// What `resolv.conf` says.
    ResolvConf,
    /// The host's routes that share addresses with these networks.
    Routes(Vec<IpNet>),
    /// What is at the watched path.
    Watched,
    /// The API socket of this identity is to be removed.
    RemoveApiSocket(Identity),
    /// Whether the client at the other end of a socket is let in.
    Admit,
    /// A container that a client has sent by descriptors.
    Pin {
        path: Option<PathBuf>,
        member: Option<i32>,
    },
    /// The container of a record.
    PinAgain(Box<Record>),
    /// What is at a path.
    Identity(PathBuf),
    /// Which of these live.
    Lives(Vec<Record>),
    /// A socket that listens for a virtual machine.
    Listen(PathBuf),
    /// A socket at the first path that is connected to the second.
    Meet(PathBuf, PathBuf),
    /// Which datagram socket is at a path.
    Served(PathBuf),
    /// A virtual machine's socket is to be removed.
    Remove(PathBuf),
    /// Which program has a port: of UDP, or of TCP.
    Holder { udp: bool, at: SocketAddr },
}

/// The answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Answer {
    Text(String),
    Routes(HostRoutes),
    Identity(Option<Identity>),
    Done,
    /// With the descriptors of a network namespace and of what tells of the end; the path if it is one.
    Pinned {
        namespace: Identity,
        liveness: Liveness,
        watched: Option<(PathBuf, Identity)>,
    },
    Lives(Vec<bool>),
    /// With a socket, if one was asked for.
    Socket(Option<SocketIdentity>),
    Failed(String),
    /// What the kernel says.
    Errno(i32),
}

/// The files of the host that a process has to do with while it runs.
#[derive(Clone, Debug, Default)]
pub struct HostFiles {
    /// A path whose end is watched for.
    pub watched: Option<PathBuf>,
    /// A Unix socket that this process has made, and removes at its end.
    pub socket: Option<PathBuf>,
}

/// What a process may ask for.
#[derive(Debug)]
enum Scope {
    Files(HostFiles),
    Network(NetworkScope),
}

/// What a network's process may ask for.
#[derive(Debug)]
struct NetworkScope {
    /// Sockets that were made for it.
    made: Mutex<HashSet<PathBuf>>,
    /// Where this user's networks are.
    directories: Directories,
}

impl Scope {
    fn network(directories: Directories) -> Scope {
        Scope::Network(NetworkScope {
            made: Mutex::default(),
            directories,
        })
    }

    fn answer(&self, request: Request, descriptors: Vec<OwnedFd>) -> (Answer, Vec<OwnedFd>) {
        let plain = |answer| (answer, Vec::new());
        match (self, request) {
            (_, Request::ResolvConf) => {
                plain(match resolv_conf::read_text(resolv_conf::PATH.as_ref()) {
                    Ok(text) => Answer::Text(text),
                    Err(error) => failed(&error),
                })
            }
            (Scope::Files(files), request) => plain(files.answer(&request)),
            (Scope::Network(scope), Request::Admit) => plain(scope.admit(&descriptors)),
            (Scope::Network(scope), request) => {
                let made = &mut scope.made.lock().unwrap_or_else(PoisonError::into_inner);
                of_network(made, request, descriptors)
            }
        }
    }

    /// As [`Scope::answer`], in bytes.
    fn answer_bytes(&self, message: Option<(Vec<OwnedFd>, &[u8])>) -> Output {
        let Some((descriptors, request)) = message else {
            return (Vec::new(), Vec::new());
        };
        let (answer, descriptors) = match serde_json::from_slice(request) {
            Ok(request) => self.answer(request, descriptors),
            Err(error) => (Answer::Failed(error.to_string()), Vec::new()),
        };
        // An answer has no way to fail.
        (descriptors, serde_json::to_vec(&answer).unwrap_or_default())
    }
}

impl NetworkScope {
    fn admit(&self, descriptors: &[OwnedFd]) -> Answer {
        let Some(socket) = descriptors.first() else {
            return refused();
        };
        match peer::judge(socket.as_fd(), &self.directories) {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Failed(why),
        }
    }
}

impl HostFiles {
    fn answer(&self, request: &Request) -> Answer {
        match request {
            Request::Watched => Answer::Identity(self.watched.as_deref().and_then(identity)),
            Request::RemoveApiSocket(identity) => {
                if let Some(path) = &self.socket {
                    remove_if(path, *identity);
                }
                Answer::Done
            }
            _ => refused(),
        }
    }
}

/// The answer to what is not for the one who asks.
fn refused() -> Answer {
    Answer::Failed("that is not for this process".to_owned())
}

fn failed(error: &io::Error) -> Answer {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => Answer::Errno(errno),
        (None, io::ErrorKind::AddrInUse) => Answer::Errno(Errno::ADDRINUSE.raw_os_error()),
        _ => Answer::Failed(error.to_string()),
    }
}

/// What a network's process asks for. `made` are the sockets that were made for it.
fn of_network(
    made: &mut HashSet<PathBuf>,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> (Answer, Vec<OwnedFd>) {
    let plain = |answer| (answer, Vec::new());
    let socket = |made: io::Result<(Option<OwnedFd>, Option<SocketIdentity>)>| match made {
        Ok((socket, identity)) => (Answer::Socket(identity), socket.into_iter().collect()),
        Err(error) => (failed(&error), Vec::new()),
    };
    match request {
        Request::Routes(networks) => plain(Answer::Routes(HostRoutes::read().within(&networks))),
        Request::Pin { path, member } => {
            match Pinned::received(descriptors, path.as_deref(), member) {
                Ok(pinned) => taken_apart(pinned),
                Err(refusal) => plain(Answer::Failed(refusal.message)),
            }
        }
        Request::PinAgain(record) => match Pinned::again(&record) {
            Ok(pinned) => taken_apart(pinned),
            Err(why) => plain(Answer::Failed(why)),
        },
        Request::Identity(path) => plain(Answer::Identity(identity(&path))),
        Request::Lives(records) => {
            plain(Answer::Lives(records.iter().map(Record::lives).collect()))
        }
        Request::Listen(path) => {
            let listener = vm_endpoint::listen(&path);
            made.extend(listener.is_ok().then_some(path));
            socket(listener.map(|listener| (Some(listener), None)))
        }
        Request::Meet(local, remote) => {
            let met = vm_endpoint::meet(&local, &remote);
            made.extend(met.is_ok().then_some(local));
            socket(met.map(|(socket, identity)| (Some(socket), identity)))
        }
        Request::Served(path) => {
            let served = vm_endpoint::served(&path);
            socket(served.map(|identity| (None, Some(identity))))
        }
        Request::Remove(path) => {
            if made.remove(&path) {
                // It may be gone, with its directory.
                let _ = fs::remove_file(path);
            }
            plain(Answer::Done)
        }
        Request::Holder { udp, at } => {
            let protocol = match udp {
                true => Protocol::Udp,
                false => Protocol::Tcp,
            };
            plain(Answer::Text(holder(protocol, at).unwrap_or_default()))
        }
        Request::ResolvConf | Request::Watched | Request::RemoveApiSocket(_) | Request::Admit => {
            plain(refused())
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Removes the file at `path` if it is that one.
fn remove_if(path: &Path, identity: Identity) {
    let found = fs::symlink_metadata(path);
    if found.is_ok_and(|found| (found.dev(), found.ino()) == identity) {
        let _ = fs::remove_file(path);
    }
}

fn taken_apart(pinned: Pinned) -> (Answer, Vec<OwnedFd>) {
    let (end, watched) = match pinned.end {
        End::Process(pidfd) => (pidfd, None),
        End::Path(watch) => {
            let (inotify, path, identity) = watch.into_parts();
            (inotify, Some((path, identity)))
        }
    };
    let answer = Answer::Pinned {
        namespace: pinned.namespace,
        liveness: pinned.liveness,
        watched,
    };
    (answer, vec![pinned.net, end])
}

/// `None` if it is no container.
fn put_together(answer: Answer, descriptors: Vec<OwnedFd>) -> Option<Pinned> {
    let Answer::Pinned {
        namespace,
        liveness,
        watched,
    } = answer
    else {
        return None;
    };
    let [net, end] = descriptors.try_into().ok()?;
    let end = match watched {
        None => End::Process(end),
        Some((path, identity)) => End::Path(PathWatch::from_parts(end, path, identity)),
    };
    Some(Pinned {
        net,
        namespace,
        liveness,
        end,
    })
}

#[derive(Debug)]
enum Answers {
    Here(Scope),
    Helper(Outside),
}

/// The host, as a process in the sandbox sees it.
#[derive(Clone, Debug)]
pub struct Host(Arc<Answers>);

/// The end that answers a network's process.
#[derive(Debug)]
pub struct NetworkServer(Server);

impl NetworkServer {
    /// Becomes the process outside, until the network's process has ended. `kept` stays open;
    /// `directories` are this user's.
    pub fn serve(self, kept: &[BorrowedFd<'_>], directories: Directories) {
        let scope = Scope::network(directories);
        self.0.serve(kept, |message| scope.answer_bytes(message));
    }
}

impl Host {
    /// For a process without a sandbox.
    pub fn here(files: HostFiles) -> Host {
        Host(Arc::new(Answers::Here(Scope::Files(files))))
    }

    /// For a network's process without a sandbox; `directories` are this user's.
    pub fn network_here(directories: Directories) -> Host {
        Host(Arc::new(Answers::Here(Scope::network(directories))))
    }

    /// Forks the helper for files.
    ///
    /// # Errors
    ///
    /// As [`Outside::start`].
    pub fn outside(files: HostFiles) -> Result<Host, TapError> {
        let scope = Scope::Files(files);
        let helper = Outside::start(Reach::Files, move |message| scope.answer_bytes(message))?;
        Ok(Host(Arc::new(Answers::Helper(helper))))
    }

    /// The two ends for a network's process.
    ///
    /// # Errors
    ///
    /// As [`Outside::pair`].
    pub fn network_outside() -> Result<(Host, NetworkServer), TapError> {
        let (asks, answers) = Outside::pair()?;
        Ok((
            Host(Arc::new(Answers::Helper(asks))),
            NetworkServer(answers),
        ))
    }

    /// The helper's descriptor, if there is one, which is to stay open.
    pub fn descriptor(&self) -> Option<i32> {
        match &*self.0 {
            Answers::Here(_) => None,
            Answers::Helper(helper) => Some(helper.descriptor()),
        }
    }

    /// The helper's PID, if there is one.
    pub fn helper(&self) -> Option<i32> {
        match &*self.0 {
            Answers::Here(_) => None,
            Answers::Helper(helper) => Some(helper.pid()),
        }
    }

    fn ask_with(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let (answer, descriptors) = match &*self.0 {
            Answers::Here(scope) => scope.answer(request, descriptors),
            Answers::Helper(helper) => {
                let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                let request = serde_json::to_vec(&request)?;
                let (descriptors, bytes) = helper.ask(&request, &borrowed)?;
                (serde_json::from_slice(&bytes)?, descriptors)
            }
        };
        match answer {
            Answer::Failed(text) => Err(io::Error::other(text)),
            Answer::Errno(errno) => Err(io::Error::from_raw_os_error(errno)),
            answer => Ok((answer, descriptors)),
        }
    }

    fn ask(&self, request: Request) -> io::Result<Answer> {
        self.ask_with(request, Vec::new()).map(|(answer, _)| answer)
    }

    /// What `resolv.conf` says.
    ///
    /// # Errors
    ///
    /// What open(2) or read(2) says, or that the helper is gone.
    pub fn resolv_conf(&self) -> io::Result<String> {
        match self.ask(Request::ResolvConf)? {
            Answer::Text(text) => Ok(text),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The host's routes that share addresses with `networks`.
    ///
    /// # Errors
    ///
    /// That the process outside is gone.
    pub(crate) fn routes_within(&self, networks: &[IpNet]) -> io::Result<HostRoutes> {
        match self.ask(Request::Routes(networks.to_vec()))? {
            Answer::Routes(routes) => Ok(routes),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Which program has a port of the host; `None` if that cannot be found out, which a network of one
    /// container cannot.
    pub(crate) fn holder(&self, protocol: Protocol, at: SocketAddr) -> Option<String> {
        let udp = protocol == Protocol::Udp;
        match self.ask(Request::Holder { udp, at }) {
            Ok(Answer::Text(text)) => Some(text).filter(|text| !text.is_empty()),
            _ => None,
        }
    }

    /// What is at the watched path, if anything.
    ///
    /// # Errors
    ///
    /// That the helper is gone.
    pub fn watched(&self) -> io::Result<Option<Identity>> {
        as_identity(self.ask(Request::Watched)?)
    }

    /// Removes the API socket, if that is still the one.
    pub fn remove_api_socket(&self, identity: Identity) {
        if let Err(error) = self.ask(Request::RemoveApiSocket(identity)) {
            tracing::warn!(%error, "the API socket stays");
        }
    }

    /// Whether the client at the other end of a control connection is let in; see `peer.rs`.
    pub(crate) fn admit(&self, client: BorrowedFd<'_>) -> Result<(), Refusal> {
        let asked = client.try_clone_to_owned();
        let asked = asked.and_then(|socket| self.ask_with(Request::Admit, vec![socket]));
        asked
            .map(drop)
            .map_err(|error| Refusal::new(Kind::Forbidden, error.to_string()))
    }

    /// As [`Pinned::received`].
    pub(crate) fn pin(
        &self,
        descriptors: Vec<OwnedFd>,
        path: Option<&Path>,
        member: Option<i32>,
    ) -> Result<Pinned, Refusal> {
        let path = path.map(Path::to_owned);
        let answer = self.ask_with(Request::Pin { path, member }, descriptors);
        let refused = |text: String| Refusal::new(Kind::Invalid, text);
        let (answer, descriptors) = answer.map_err(|error| refused(error.to_string()))?;
        put_together(answer, descriptors).ok_or_else(|| refused(UNKNOWN.to_owned()))
    }

    /// As [`Pinned::again`].
    pub(crate) fn pin_again(&self, record: &Record) -> Result<Pinned, String> {
        let answer = self.ask_with(Request::PinAgain(Box::new(record.clone())), Vec::new());
        let (answer, descriptors) = answer.map_err(|error| error.to_string())?;
        put_together(answer, descriptors).ok_or_else(|| UNKNOWN.to_owned())
    }

    /// What is at a path, if anything.
    pub(crate) fn identity(&self, path: &Path) -> io::Result<Option<Identity>> {
        as_identity(self.ask(Request::Identity(path.to_owned()))?)
    }

    /// Which of these live; all, where that cannot be found out.
    pub(crate) fn lives(&self, records: &[Record]) -> Vec<bool> {
        match self.ask(Request::Lives(records.to_vec())) {
            Ok(Answer::Lives(lives)) if lives.len() == records.len() => lives,
            _ => vec![true; records.len()],
        }
    }

    fn socket(&self, request: Request) -> io::Result<(Option<OwnedFd>, Option<SocketIdentity>)> {
        match self.ask_with(request, Vec::new())? {
            (Answer::Socket(identity), descriptors) => {
                Ok((descriptors.into_iter().next(), identity))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// What is said of an answer that is none.
const UNKNOWN: &str = "the process outside the sandbox does not answer";

fn as_identity(answer: Answer) -> io::Result<Option<Identity>> {
    match answer {
        Answer::Identity(identity) => Ok(identity),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl Sockets for Host {
    fn listen(&self, path: &Path) -> io::Result<OwnedFd> {
        let (socket, _) = self.socket(Request::Listen(path.to_owned()))?;
        socket.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn meet(&self, local: &Path, remote: &Path) -> io::Result<(OwnedFd, Option<SocketIdentity>)> {
        let (socket, there) = self.socket(Request::Meet(local.to_owned(), remote.to_owned()))?;
        let socket = socket.ok_or(io::ErrorKind::InvalidData)?;
        Ok((socket, there))
    }

    fn served(&self, path: &Path) -> io::Result<SocketIdentity> {
        let (_, identity) = self.socket(Request::Served(path.to_owned()))?;
        identity.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn remove(&self, path: &Path) {
        if let Err(error) = self.ask(Request::Remove(path.to_owned())) {
            tracing::warn!(%error, path = %path.display(), "a machine's socket stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_asks_itself_where_there_is_no_helper() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        fs::write(&path, "").unwrap();
        let host = Host::here(HostFiles {
            watched: Some(path.clone()),
            socket: Some(path.clone()),
        });
        let found = host.watched().unwrap().unwrap();
        host.remove_api_socket((found.0, found.1 + 1));
        assert!(path.exists(), "another file's identity");
        host.remove_api_socket(found);
        assert!(!path.exists());
        assert_eq!(host.watched().unwrap(), None);
        assert_eq!((host.descriptor(), host.helper()), (None, None));
    }

    #[test]
    fn what_is_for_a_network_is_not_for_one_container() {
        let host = Host::here(HostFiles::default());
        assert!(host.identity("/etc/passwd".as_ref()).is_err());
        assert!(host.listen("/tmp/x".as_ref()).is_err());
        assert!(host.pin(Vec::new(), None, None).is_err());
    }

    #[test]
    fn only_sockets_that_were_made_for_it_are_removed() {
        let place = tempfile::tempdir().unwrap();
        let (own, other) = (place.path().join("own"), place.path().join("other"));
        let directories = Directories {
            config: place.path().join("c"),
            state: place.path().join("s"),
            runtime: place.path().join("r"),
        };
        let host = Host::network_here(directories);
        let _listener = host.listen(&own).unwrap();
        let in_use = host.listen(&own).unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
        fs::write(&other, "a user's file").unwrap();
        host.remove(&other);
        host.remove(&own);
        assert!(other.exists() && !own.exists());
        assert!(host.identity(&other).unwrap().is_some());
        let absent = host.served(&own).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_container_crosses_unchanged() {
        let (net, pid) = (
            fs::File::open("/proc/self/ns/net").unwrap(),
            std::process::id(),
        );
        let pinned = Pinned {
            net: net.into(),
            namespace: (4, 5),
            liveness: Liveness::Process {
                pid: pid as i32,
                start_time: 7,
                member: None,
            },
            end: End::Process(cnet_tap::watch::pidfd(pid as i32).unwrap()),
        };
        let (answer, descriptors) = taken_apart(pinned);
        let text = serde_json::to_string(&answer).unwrap();
        let answer = serde_json::from_str(&text).unwrap();
        let again = put_together(answer, descriptors).unwrap();
        assert_eq!(again.namespace, (4, 5));
        assert!(matches!(again.end, End::Process(_)));
        assert!(put_together(Answer::Done, Vec::new()).is_none());
    }
}
