//! A blocking netlink socket: sends requests, alone or in batches, waits a limited time, and detects torn dumps. It
//! knows no kind of object.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols};
use socket2::SockRef;

use crate::error::{ATTEMPTS, Cause, Error};
use crate::message::{Message, Part, parts};

/// Maximum time to wait for an answer. The kernel answers from within the send; the limit only prevents an endless
/// wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Size in bytes of the buffer for one datagram; a datagram of a dump has at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// Maximum number of bytes in one send; it is below the default send buffer.
const BATCH_BYTES: usize = 64 * 1024;
/// Maximum number of messages in one send: an error for each fits into the receive buffer of an unprivileged process.
const BATCH_MESSAGES: usize = 256;

/// Requested size in bytes of the receive buffer; the kernel grants at most `net.core.rmem_max`.
pub(crate) const RECEIVE_BUFFER: usize = 4 << 20;

/// A netlink socket and the last sequence number.
pub(crate) struct Netlink {
    socket: Socket,
    /// Netlink port of this socket, which the kernel's notifications name as the author of our changes.
    pub(crate) port: u32,
    datagram: Vec<u8>,
    sequence: u32,
    /// Largest number of rows that a dump has yielded; room for that many is reserved.
    most: usize,
}

/// Meaning of one message of an answer.
enum Answer<'a> {
    Part(Part<'a>),
    End(Result<(), Cause>),
}

impl Netlink {
    /// Opens a socket to rtnetlink(7): links, addresses, routes and the other network objects.
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = Self::socket(protocols::NETLINK_ROUTE);
        socket.map_err(|cause| Error::new("open a netlink socket", cause))
    }

    /// Opens a socket to nf_tables.
    pub(crate) fn netfilter() -> Result<Self, Cause> {
        Self::socket(protocols::NETLINK_NETFILTER)
    }

    /// Opens a socket to sock_diag(7), the list of sockets.
    pub(crate) fn sock_diag() -> Result<Self, Cause> {
        Self::socket(protocols::NETLINK_SOCK_DIAG)
    }

    fn socket(protocol: isize) -> Result<Self, Cause> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            let port = socket.bind_auto()?.port_number();
            // A socket that is connected to the kernel receives no unicast messages of other processes.
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            socket.set_netlink_get_strict_chk(true)?;
            SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
            SockRef::from(&socket).set_read_timeout(Some(ANSWER_TIMEOUT))?;
            Ok((socket, port))
        };
        let (socket, port) = open().map_err(|error: io::Error| Cause::from(&error))?;
        Ok(Self { socket, port, datagram: Vec::with_capacity(DATAGRAM), sequence: 0, most: 0 })
    }

    /// Reads a dump into a list. A missing table, device, family or kind of object yields no rows. Fails if the dump
    /// fails or changes during each reading. `what` names the reading in the error, such as `read the rules`.
    pub(crate) fn rows<T>(
        &mut self,
        what: &'static str,
        request: Message,
        decode: impl Fn(Part<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.rows_and(what, request, |all: &mut (Vec<T>, ()), part| all.0.extend(decode(part)))
            .map(|all| all.0)
    }

    /// Reads a dump as [`Self::rows`] does, into a list and something beside it.
    pub(crate) fn rows_and<T, B: Default>(
        &mut self,
        what: &'static str,
        request: Message,
        mut each: impl FnMut(&mut (Vec<T>, B), Part<'_>),
    ) -> Result<(Vec<T>, B), Error> {
        let most = self.most;
        let dump = self.dump(request, |all: &mut (Vec<T>, B), part| {
            // Growing a list costs more than reserved pages that stay untouched.
            if all.0.capacity() == 0 {
                all.0.reserve(most);
            }
            each(all, part);
        });
        let all = present(dump).map_err(|cause| Error::new(what, cause))?;
        self.most = most.max(all.0.len());
        Ok(all)
    }

    /// Reads a whole dump into `A`, and again while the kernel reports that the data changed meanwhile. Fails with
    /// [`Cause::Torn`] after [`ATTEMPTS`] readings.
    pub(crate) fn dump<A: Default>(
        &mut self,
        mut request: Message,
        mut each: impl FnMut(&mut A, Part<'_>),
    ) -> Result<A, Cause> {
        until_whole(|| {
            let mut all = A::default();
            let torn = self.ask(&mut request, |part| each(&mut all, part))?;
            Ok((!torn).then_some(all))
        })
    }

    /// Sends one request and passes every part of the answer to `each`. Returns true if the answer was torn: the data
    /// changed while it was read.
    pub(crate) fn ask(
        &mut self,
        request: &mut Message,
        mut each: impl FnMut(Part<'_>),
    ) -> Result<bool, Cause> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        // A dump that starts without an error sends no acknowledgement.
        send(&self.socket, request.seal(sequence, true))?;
        let (mut torn, mut result) = (false, Ok(()));
        self.receive(sequence, sequence, |_, part| {
            torn |= is_torn(part);
            match answer(part) {
                Answer::Part(part) => each(part),
                Answer::End(end) => result = end,
            }
        })?;
        result.map(|()| torn)
    }

    /// Sends requests one after the other, up to the first error.
    pub(crate) fn ask_each(&mut self, requests: impl IntoIterator<Item = Message>) -> Result<(), Cause> {
        requests.into_iter().try_for_each(|mut request| self.ask(&mut request, |_| {}).map(|_| ()))
    }

    /// Sends all requests, many per send, and returns one result for each, in order. They are no transaction.
    pub(crate) fn batch(&mut self, mut requests: Vec<Message>) -> Vec<Result<(), Cause>> {
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = &mut requests[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(batch_size(rest));
            results.extend(self.send_batch(now));
            rest = later;
        }
        results
    }

    /// Sends one batch. Only its last request asks for an acknowledgement: errors come in any case, each with its
    /// sequence number.
    fn send_batch(&mut self, requests: &mut [Message]) -> Vec<Result<(), Cause>> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(BATCH_BYTES);
        let count = requests.len();
        for (place, request) in requests.iter_mut().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend_from_slice(request.seal(self.sequence, place + 1 == count));
        }
        let mut results = vec![Ok(()); count];
        let last = self.sequence;
        let sent = send(&self.socket, &bytes).and_then(|()| {
            self.receive(first, last, |place, part| {
                if let Answer::End(end) = answer(part) {
                    results[place] = end;
                }
            })
        });
        // Answers are missing. A request without an error may or may not have been carried out, so it counts as failed.
        if let Err(cause) = sent {
            results
                .iter_mut()
                .filter(|result| result.is_ok())
                .for_each(|result| *result = Err(cause.clone()));
        }
        results
    }

    /// Sends a few requests to nf_tables as one transaction: all succeed or all fail. A first and a last message frame
    /// them.
    pub(crate) fn transaction(&mut self, mut requests: Vec<Message>) -> Result<(), Cause> {
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        /// `struct nfgenmsg`, with the number of nf_tables in network order.
        const SUBSYSTEM: [u8; 4] = [0, 0, 0, 10];
        let frame = |kind| Message::new(kind, 0, &[&SUBSYSTEM]);
        requests.insert(0, frame(BEGIN));
        requests.push(frame(END));
        let (first, last) =
            (self.sequence.wrapping_add(1), self.sequence.wrapping_add(requests.len() as u32 - 1));
        let mut bytes = Vec::new();
        for request in &mut requests {
            self.sequence = self.sequence.wrapping_add(1);
            // Old kernels do not acknowledge the two messages of the frame.
            bytes.extend_from_slice(request.seal(self.sequence, self.sequence == last));
        }
        send(&self.socket, &bytes)?;
        let mut result = Ok(());
        // A refusal of the whole transaction is reported for the first message, and for no other.
        let is_last = |part: Part<'_>| [first, last].contains(&part.sequence) && ends(part);
        self.receive_until(is_last, first, last, |_, part| {
            if let Answer::End(Err(cause)) = answer(part)
                && result.is_ok()
            {
                result = Err(cause);
            }
        })?;
        result
    }

    /// Receives the answers to the requests `first..=last`, until the last one is answered.
    fn receive(&mut self, first: u32, last: u32, each: impl FnMut(usize, Part<'_>)) -> Result<(), Cause> {
        self.receive_until(|part| part.sequence == last && ends(part), first, last, each)
    }

    /// Receives messages until `is_last` returns true. Messages of earlier requests, which were given up, are skipped.
    fn receive_until(
        &mut self,
        is_last: impl Fn(Part<'_>) -> bool,
        first: u32,
        last: u32,
        mut each: impl FnMut(usize, Part<'_>),
    ) -> Result<(), Cause> {
        loop {
            receive(&self.socket, &mut self.datagram).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => Cause::NoAnswer(ANSWER_TIMEOUT.as_secs()),
                _ => Cause::from(&error),
            })?;
            for part in parts(&self.datagram) {
                let place = part.sequence.wrapping_sub(first);
                if place > last.wrapping_sub(first) {
                    continue;
                }
                each(place as usize, part);
                if is_last(part) {
                    return Ok(());
                }
            }
        }
    }
}

fn batch_size(requests: &[Message]) -> usize {
    let mut bytes = 0;
    let fits = |request: &&Message| {
        bytes += request.len();
        bytes <= BATCH_BYTES
    };
    requests.iter().take(BATCH_MESSAGES).take_while(fits).count().max(1)
}

fn until_whole<A>(mut read: impl FnMut() -> Result<Option<A>, Cause>) -> Result<A, Cause> {
    for _ in 0..ATTEMPTS {
        if let Some(whole) = read()? {
            return Ok(whole);
        }
    }
    Err(Cause::Torn)
}

/// Turns the error for a missing table, device, family or kind of object into an empty result.
fn present<A: Default>(dump: Result<A, Cause>) -> Result<A, Cause> {
    match dump {
        Err(Cause::Refused {
            errno: libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP | libc::EAFNOSUPPORT,
            ..
        }) => Ok(A::default()),
        other => other,
    }
}

fn ends(part: Part<'_>) -> bool {
    matches!(i32::from(part.kind), libc::NLMSG_DONE | libc::NLMSG_ERROR)
}

fn is_torn(part: Part<'_>) -> bool {
    part.flags & libc::NLM_F_DUMP_INTR as u16 != 0
}

fn send(socket: &Socket, bytes: &[u8]) -> Result<(), Cause> {
    loop {
        match socket.send(bytes, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Cause::from(&error)),
        }
    }
}

/// Receives one datagram into `buffer`, replacing its content.
pub(crate) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Interprets one message. `NLMSG_DONE` and `NLMSG_ERROR` both start with an error number; zero is success.
fn answer(part: Part<'_>) -> Answer<'_> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attributes = match i32::from(part.kind) {
        libc::NLMSG_DONE => 4,
        libc::NLMSG_ERROR => 4 + crate::message::HEADER,
        _ => return Answer::Part(part),
    };
    let errno = -(part.body.u32(0) as i32);
    if errno == 0 {
        return Answer::End(Ok(()));
    }
    let mut attributes = part.body.attributes(attributes);
    let text = attributes.find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG);
    Answer::End(Err(Cause::Refused { errno, text: text.map(|text| text.text().into()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a message of an answer from its fixed part.
    fn message(kind: i32, flags: i32, fixed: &[u8]) -> Vec<u8> {
        let mut message = Message::new(kind as u16, flags, &[fixed]);
        message.seal(7, false).to_vec()
    }

    #[test]
    fn a_torn_dump_is_read_again_a_limited_number_of_times() {
        for (torn, expected) in
            [(0, Ok(0)), (1, Ok(1)), (ATTEMPTS - 1, Ok(ATTEMPTS - 1)), (ATTEMPTS, Err(Cause::Torn))]
        {
            let mut readings = 0..;
            let read = || Ok(readings.next().filter(|reading| *reading >= torn));
            assert_eq!(until_whole(read), expected, "{torn} torn readings");
        }
        let mut readings = 0;
        let refused = Cause::Refused { errno: libc::EPERM, text: None };
        let result = until_whole(|| {
            readings += 1;
            Err::<Option<()>, _>(refused.clone())
        });
        assert_eq!((result, readings), (Err(refused.clone()), 1), "an error is not asked for again");
    }

    #[test]
    fn any_message_of_a_dump_can_mark_it_as_torn() {
        for kind in [libc::RTM_NEWROUTE.into(), libc::NLMSG_DONE] {
            for (flags, torn) in
                [(libc::NLM_F_MULTI, false), (libc::NLM_F_MULTI | libc::NLM_F_DUMP_INTR, true)]
            {
                let bytes = message(kind, flags, &[0; 4]);
                assert_eq!(parts(&bytes).map(is_torn).collect::<Vec<_>>(), [torn]);
            }
        }
    }

    #[test]
    fn a_refusal_carries_the_kernels_error_text() {
        let end = |bytes: &[u8]| match parts(bytes).map(answer).next() {
            Some(Answer::End(end)) => end,
            _ => panic!("no end"),
        };
        let words = [&[12, 0, 1, 0][..], b"too bad\0"].concat();
        let refused =
            |text: Option<&str>| Err(Cause::Refused { errno: libc::EINVAL, text: text.map(Into::into) });
        let errno = (-libc::EINVAL).to_ne_bytes();
        assert_eq!(end(&message(libc::NLMSG_DONE, 0, &[0; 4])), Ok(()));
        assert_eq!(end(&message(libc::NLMSG_ERROR, 0, &[0; 20])), Ok(()));
        assert_eq!(end(&message(libc::NLMSG_ERROR, 0, &[&errno[..], &[0; 16]].concat())), refused(None));
        let told = [&errno[..], &[0; 16], &words].concat();
        assert_eq!(end(&message(libc::NLMSG_ERROR, 0, &told)), refused(Some("too bad")));
        let told = [&errno[..], &words].concat();
        assert_eq!(end(&message(libc::NLMSG_DONE, 0, &told)), refused(Some("too bad")));
    }

    #[test]
    fn a_batch_is_bounded_by_bytes_and_messages_and_never_empty() {
        let of = |count: usize, length: usize| -> Vec<_> {
            (0..count).map(|_| Message::new(0, 0, &[&vec![0; length]])).collect()
        };
        assert_eq!(batch_size(&of(5, 10)), 5);
        assert_eq!(batch_size(&of(1000, 10)), BATCH_MESSAGES);
        assert_eq!(batch_size(&of(10, 20_000)), 3);
        assert_eq!(batch_size(&of(2, 2 * BATCH_BYTES)), 1);
    }

    #[test]
    fn a_late_reply_to_an_abandoned_request_is_ignored() {
        let mut netlink = Netlink::open().unwrap();
        let mut request = crate::addr::dump_request();
        send(&netlink.socket, request.seal(1, true)).unwrap();
        netlink.sequence = 1;
        let mut lookup = crate::route::lookup_request([127, 0, 0, 1].into());
        let mut kinds = Vec::new();
        netlink.ask(&mut lookup, |part| kinds.push(part.kind)).unwrap();
        assert_eq!(kinds, [libc::RTM_NEWROUTE]);
    }

    /// Counts the addresses of a dump of about 10 datagrams. During each of the first `torn` readings it adds and
    /// deletes an address.
    fn addresses_while_changing(torn: usize) -> Result<usize, Cause> {
        let (mut reader, mut writer) = (Netlink::open().unwrap(), Netlink::open().unwrap());
        let change = |kind, flags| {
            let mut message = Message::new(kind, flags, &[&[2, 32, 0, 0], &1_u32.to_ne_bytes()]);
            message.ip(libc::IFA_LOCAL, [127, 9, 9, 9].into());
            message
        };
        let mut readings = 0;
        reader.dump(crate::addr::dump_request(), |count: &mut usize, _| {
            *count += 1;
            readings += usize::from(*count == 1);
            if *count == 1 && readings <= torn {
                let add = change(libc::RTM_NEWADDR, libc::NLM_F_CREATE);
                writer.ask_each([add, change(libc::RTM_DELADDR, 0)]).unwrap();
            }
        })
    }

    #[test]
    fn the_kernel_reports_a_torn_dump() {
        lab::test(lab::Timing::Free, || {
            let lines = (0..3000).map(|k| format!("addr add 127.1.{}.{}/32 dev lo\n", k / 250, k % 250));
            let batch = lab::enter::work_dir().join("tmp/addresses");
            std::fs::write(&batch, lines.collect::<String>()).unwrap();
            let done = std::process::Command::new("ip").arg("-batch").arg(batch).status().unwrap();
            assert!(done.success());
            let whole = addresses_while_changing(0).unwrap();
            assert!(whole >= 3000, "{whole}");
            assert_eq!(addresses_while_changing(ATTEMPTS - 1), Ok(whole));
            assert_eq!(addresses_while_changing(ATTEMPTS), Err(Cause::Torn));
        });
    }
}
