//! Who may speak on a connection: both sides prove that they know the cluster secret by HMAC-SHA256 over fresh nonces and their cards;
//! the secret is never sent. The proof counts for that TCP connection only, and only at the node it was meant for: a stranger between
//! two nodes cannot pass it on to a third. An operator's tool does not know whom it will reach and names node 0, so a stranger whom it
//! dials could pass its proof on; such a connection can call the operators' services only. A stranger learns one nonce and nothing else.
//! Over TLS the proof counts for that TLS connection only (both mix in what its exporter gives them), so that nobody in the middle can
//! pass it on, not even with a certificate of the same authority. Without TLS the connection is not encrypted.
//!
//! `> 0 | client nonce 32` `< server nonce 32` `> 1 | client nonce 32 | card | to u16 | proof 32` `< card | proof 32`

use super::transport::Card;
use crate::model::NodeId;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::sync::{Arc, OnceLock};

const NONCE: usize = 32;
const PROOF: usize = 32;
/// No node: an operator's tool, and the node it asks for.
const OPERATOR: NodeId = NodeId(0);
const ASK: u8 = 0;
const PROVE: u8 = 1;

/// The cluster secret; prints as nothing.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// From its bytes; empty is allowed for a cluster of one node only (the configuration sees to that).
    pub fn new(bytes: &[u8]) -> Secret {
        Secret(bytes.into())
    }

    /// That whoever knows this secret knows the salted digest of a user's password, too: without the secret nobody can try passwords
    /// against what was seen on the wire.
    pub fn prove_password(&self, user: &str, nonce: &[u8], digest: &[u8]) -> Vec<u8> {
        self.password_mac(user, nonce, digest).finalize().into_bytes().to_vec()
    }

    /// Whether that is such a proof; takes the same time wherever it is wrong.
    pub fn is_password_proof(&self, user: &str, nonce: &[u8], digest: &[u8], proof: &[u8]) -> bool {
        self.password_mac(user, nonce, digest).verify_slice(proof).is_ok()
    }

    fn password_mac(&self, user: &str, nonce: &[u8], digest: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"warren password");
        for part in [user.as_bytes(), nonce, digest] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    /// `to`: whom the proof is for.
    fn mac(&self, label: &[u8], nonces: &Nonces, card: &Card, to: NodeId) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        let mut bytes = BytesMut::with_capacity(Card::BYTES);
        card.write(&mut bytes);
        mac.update(label);
        mac.update(&nonces.client);
        mac.update(&nonces.server);
        mac.update(&nonces.binding);
        mac.update(&bytes);
        mac.update(&to.0.to_le_bytes());
        mac
    }
}

struct Nonces {
    client: [u8; NONCE],
    server: [u8; NONCE],
    /// Of the TLS connection, zeros without one.
    binding: [u8; NONCE],
}

/// Why a connection is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Not in the form above.
    #[error("malformed hello")]
    Malformed,
    /// The other side does not know the secret.
    #[error("the other side does not know the cluster secret")]
    Secret,
    /// Both are formed, into different clusters.
    #[error("node {0} belongs to another cluster")]
    OtherCluster(NodeId),
    /// Somebody else answers at that address.
    #[error("node {found} answers where node {expected} was configured")]
    OtherNode {
        /// As configured.
        expected: NodeId,
        /// As proved.
        found: NodeId,
    },
}

fn check_cards(mine: &Card, theirs: &Card) -> Result<(), AuthError> {
    match (mine.cluster, theirs.cluster) {
        (Some(a), Some(b)) if a != b => Err(AuthError::OtherCluster(theirs.node)),
        _ => Ok(()),
    }
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Gate {
    nonce: [u8; NONCE],
    binding: [u8; NONCE],
    proved: OnceLock<Card>,
}

impl Gate {
    /// Of a connection with this TLS binding; zeros without TLS.
    pub fn new(binding: [u8; NONCE]) -> Gate {
        Gate { nonce: rand::random(), binding, proved: OnceLock::new() }
    }

    /// Who the other side proved to be; node 0 is an operator's tool.
    pub fn card(&self) -> Option<Card> {
        self.proved.get().copied()
    }

    /// Answer a hello; after an `Ok` to the second one `card` is known.
    pub fn hello(&self, secret: &Secret, mine: &Card, mut head: Bytes) -> Result<Bytes, AuthError> {
        let kind = head.try_get_u8().map_err(|_| AuthError::Malformed)?;
        if head.len() < NONCE {
            return Err(AuthError::Malformed);
        }
        let mut client = [0; NONCE];
        head.copy_to_slice(&mut client);
        let nonces = Nonces { client, server: self.nonce, binding: self.binding };
        match kind {
            ASK => Ok(Bytes::copy_from_slice(&self.nonce)),
            PROVE => {
                let card = Card::read(&mut head).ok_or(AuthError::Malformed)?;
                let to = NodeId(head.try_get_u16_le().map_err(|_| AuthError::Malformed)?);
                secret.mac(b"warren client", &nonces, &card, to).verify_slice(&head).map_err(|_| AuthError::Secret)?;
                check_cards(mine, &card)?;
                if to != mine.node && (to, card.node) != (OPERATOR, OPERATOR) {
                    return Err(AuthError::OtherNode { expected: to, found: mine.node });
                }
                let _ = self.proved.set(card);
                let mut answer = BytesMut::with_capacity(Card::BYTES + PROOF);
                mine.write(&mut answer);
                answer.put_slice(&secret.mac(b"warren server", &nonces, mine, card.node).finalize().into_bytes());
                Ok(answer.freeze())
            }
            _ => Err(AuthError::Malformed),
        }
    }
}

/// The client's side of one connection.
pub struct Visitor {
    nonce: [u8; NONCE],
    binding: [u8; NONCE],
    card: Card,
    to: NodeId,
}

impl Visitor {
    /// Who we say we are and whom we mean to reach; `None`: whoever answers, for an operator's tool.
    /// `binding` as for `Gate::new`.
    pub fn new(card: Card, to: Option<NodeId>, binding: [u8; NONCE]) -> Visitor {
        Visitor { nonce: rand::random(), binding, card, to: to.unwrap_or(OPERATOR) }
    }

    /// The first hello.
    pub fn ask(&self) -> Bytes {
        [&[ASK][..], &self.nonce].concat().into()
    }

    fn nonces(&self, server: &[u8]) -> Result<Nonces, AuthError> {
        let server = server.try_into().map_err(|_| AuthError::Malformed)?;
        Ok(Nonces { client: self.nonce, server, binding: self.binding })
    }

    /// The second hello; `server_nonce` is the answer to the first.
    pub fn prove(&self, secret: &Secret, server_nonce: &[u8]) -> Result<Bytes, AuthError> {
        let proof = secret.mac(b"warren client", &self.nonces(server_nonce)?, &self.card, self.to).finalize().into_bytes();
        let mut head = BytesMut::with_capacity(1 + NONCE + Card::BYTES + 2 + PROOF);
        head.put_u8(PROVE);
        head.put_slice(&self.nonce);
        self.card.write(&mut head);
        head.put_u16_le(self.to.0);
        head.put_slice(&proof);
        Ok(head.freeze())
    }

    /// Checks the answer to the second hello; the other side's card.
    pub fn check(&self, secret: &Secret, server_nonce: &[u8], mut answer: Bytes) -> Result<Card, AuthError> {
        let card = Card::read(&mut answer).ok_or(AuthError::Malformed)?;
        let mac = secret.mac(b"warren server", &self.nonces(server_nonce)?, &card, self.card.node);
        mac.verify_slice(&answer).map_err(|_| AuthError::Secret)?;
        check_cards(&self.card, &card)?;
        match self.to {
            OPERATOR => Ok(card),
            to if to != card.node => Err(AuthError::OtherNode { expected: to, found: card.node }),
            _ => Ok(card),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generation, Incarnation};

    const PLAIN: [u8; NONCE] = [0; NONCE];

    fn card(node: u16, cluster: Option<u128>) -> Card {
        Card { node: NodeId(node), generation: Generation(1), incarnation: Incarnation(5), cluster }
    }

    fn meet(client: (&str, Card), server: (&str, Card), expected: u16) -> Result<(Card, Option<Card>), AuthError> {
        let (theirs, ours) = (Secret::new(client.0.as_bytes()), Secret::new(server.0.as_bytes()));
        let (gate, visitor) = (Gate::new(PLAIN), Visitor::new(client.1, Some(NodeId(expected)), PLAIN));
        let nonce = gate.hello(&ours, &server.1, visitor.ask())?;
        assert_eq!(gate.card(), None);
        let answer = gate.hello(&ours, &server.1, visitor.prove(&theirs, &nonce)?)?;
        visitor.check(&theirs, &nonce, answer).map(|card| (card, gate.card()))
    }

    #[test]
    fn two_nodes_with_the_secret_learn_each_others_cards() {
        let (a, b) = (card(1, Some(9)), card(2, None));
        assert_eq!(meet(("s", a), ("s", b), 2), Ok((b, Some(a))));
    }

    #[test]
    fn a_stranger_another_cluster_and_a_mixed_up_address_are_refused() {
        assert_eq!(meet(("x", card(1, None)), ("s", card(2, None)), 2), Err(AuthError::Secret));
        assert_eq!(meet(("s", card(1, Some(1))), ("s", card(2, Some(2))), 2), Err(AuthError::OtherCluster(NodeId(1))));
        let other = AuthError::OtherNode { expected: NodeId(3), found: NodeId(2) };
        assert_eq!(meet(("s", card(1, None)), ("s", card(2, None)), 3), Err(other));
    }

    #[test]
    fn a_proof_overheard_on_one_connection_is_worth_nothing_on_another() {
        let secret = Secret::new(b"s");
        let (one, two, visitor) = (Gate::new(PLAIN), Gate::new(PLAIN), Visitor::new(card(1, None), Some(NodeId(2)), PLAIN));
        let nonce = one.hello(&secret, &card(2, None), visitor.ask()).expect("nonce");
        let proof = visitor.prove(&secret, &nonce).expect("proof");
        assert_eq!(two.hello(&secret, &card(2, None), proof), Err(AuthError::Secret));
        assert_eq!(two.card(), None);
    }

    #[test]
    fn a_proof_passed_on_from_one_tls_connection_to_another_is_worth_nothing() {
        let secret = Secret::new(b"s");
        for (dialled, accepted) in [(7, true), (8, false)] {
            let (visitor, gate) = (Visitor::new(card(1, None), Some(NodeId(2)), [7; NONCE]), Gate::new([dialled; NONCE]));
            let nonce = gate.hello(&secret, &card(2, None), visitor.ask()).expect("nonce");
            let proof = visitor.prove(&secret, &nonce).expect("proof");
            assert_eq!(gate.hello(&secret, &card(2, None), proof).is_ok(), accepted);
        }
    }

    #[test]
    fn a_proof_for_one_node_is_not_taken_by_another() {
        // Node 1 dials what it believes to be node 2; a stranger answers there and has dialed node 3.
        let secret = Secret::new(b"s");
        let (visitor, third) = (Visitor::new(card(1, Some(9)), Some(NodeId(2)), PLAIN), Gate::new(PLAIN));
        let nonce = third.hello(&secret, &card(3, Some(9)), visitor.ask()).expect("nonce");
        let proof = visitor.prove(&secret, &nonce).expect("proof");
        let mut renamed = proof.to_vec();
        let at = 1 + NONCE + Card::BYTES;
        renamed[at] = 3;
        let refused = third.hello(&secret, &card(3, Some(9)), proof);
        assert_eq!(refused, Err(AuthError::OtherNode { expected: NodeId(2), found: NodeId(3) }));
        assert_eq!(third.hello(&secret, &card(3, Some(9)), renamed.into()), Err(AuthError::Secret));
        assert_eq!(third.card(), None);
    }

    #[test]
    fn an_operators_tool_reaches_any_node_and_a_node_may_not_ask_like_one() {
        let secret = Secret::new(b"s");
        for (from, accepted) in [(0, true), (1, false)] {
            let (visitor, gate) = (Visitor::new(card(from, None), None, PLAIN), Gate::new(PLAIN));
            let nonce = gate.hello(&secret, &card(3, None), visitor.ask()).expect("nonce");
            let proof = visitor.prove(&secret, &nonce).expect("proof");
            assert_eq!(gate.hello(&secret, &card(3, None), proof).is_ok(), accepted);
        }
    }

    #[test]
    fn a_password_is_proven_for_one_user_and_nonce_under_one_secret() {
        let secret = Secret::new(b"s");
        let proof = secret.prove_password("u", b"nonce", b"digest");
        assert!(secret.is_password_proof("u", b"nonce", b"digest", &proof));
        for (user, nonce, digest) in [("v", "nonce", "digest"), ("u", "other", "digest"), ("u", "nonce", "other"), ("un", "once", "digest")]
        {
            assert!(!secret.is_password_proof(user, nonce.as_bytes(), digest.as_bytes(), &proof), "{user} {nonce} {digest}");
        }
        assert!(!Secret::new(b"t").is_password_proof("u", b"nonce", b"digest", &proof));
        assert!(!secret.is_password_proof("u", b"nonce", b"digest", &proof[..31]));
    }

    #[test]
    fn garbage_is_refused() {
        let gate = Gate::new(PLAIN);
        for garbage in [&b""[..], &[0], &[1; 40], &[7; 200], &[1; 200]] {
            assert!(gate.hello(&Secret::new(b"s"), &card(2, None), Bytes::copy_from_slice(garbage)).is_err());
        }
        assert_eq!(gate.card(), None);
    }
}
