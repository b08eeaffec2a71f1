//! Topic exchange: words between dots, `*` is one word, `#` is none or more. A trie of binding keys, matched like an automaton: the
//! set of trie nodes reached so far moves on word by word, so that many `#` cost no more than the nodes they touch.

use super::Targets;
use hashbrown::HashMap;
use smallvec::SmallVec;

const ROOT: u32 = 0;

#[derive(Clone, Debug)]
struct Node<T> {
    words: HashMap<Box<[u8]>, u32>,
    star: Option<u32>,
    hash: Option<u32>,
    /// The node is a `#`: it takes further words and stays.
    stays: bool,
    targets: Targets<T>,
}

impl<T> Node<T> {
    fn new(stays: bool) -> Node<T> {
        Node { words: HashMap::new(), star: None, hash: None, stays, targets: Targets::default() }
    }

    fn child(&self, word: &[u8]) -> Option<u32> {
        match word {
            b"*" => self.star,
            b"#" => self.hash,
            _ => self.words.get(word).copied(),
        }
    }
}

/// Targets by pattern.
#[derive(Clone, Debug)]
pub struct Topic<T> {
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
}

impl<T> Default for Topic<T> {
    fn default() -> Topic<T> {
        Topic { nodes: vec![Node::new(false)], free: Vec::new() }
    }
}

type Reached = SmallVec<[u32; 16]>;

/// An empty key has no word; otherwise a dot separates two.
fn words(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.split(|b| *b == b'.').take(if key.is_empty() { 0 } else { usize::MAX })
}

impl<T: Ord> Topic<T> {
    /// Bind.
    pub fn insert(&mut self, pattern: &[u8], target: T) {
        let mut at = ROOT;
        for word in words(pattern) {
            at = match self.nodes[at as usize].child(word) {
                Some(next) => next,
                None => self.add(at, word),
            };
        }
        self.nodes[at as usize].targets.insert(target);
    }

    /// Unbind; nodes that lead nowhere go.
    pub fn remove(&mut self, pattern: &[u8], target: &T) {
        let mut path = vec![(ROOT, &b""[..])];
        for word in words(pattern) {
            let (parent, _) = path[path.len() - 1];
            let Some(next) = self.nodes[parent as usize].child(word) else { return };
            path.push((next, word));
        }
        let (at, _) = path[path.len() - 1];
        self.nodes[at as usize].targets.remove(target);
        for step in path.windows(2).rev() {
            let (parent, (at, word)) = (step[0].0, step[1]);
            if !self.is_bare(at) {
                return;
            }
            self.cut(parent, word);
            self.free.push(at);
        }
    }

    /// Visits the targets of `key`, one that is bound by several matching patterns several times.
    pub fn route(&self, key: &[u8], visit: &mut dyn FnMut(&T)) {
        let mut here = Reached::new();
        self.reach(ROOT, &mut here);
        for word in words(key) {
            let mut next = Reached::new();
            for at in &here {
                let node = &self.nodes[*at as usize];
                if node.stays {
                    self.reach(*at, &mut next);
                }
                // A word of a message that looks like a wildcard is a plain word, and no binding names it.
                let plain = node.words.get(word).copied();
                plain.into_iter().chain(node.star).for_each(|n| self.reach(n, &mut next));
            }
            next.sort_unstable();
            next.dedup();
            here = next;
        }
        here.iter().for_each(|at| self.nodes[*at as usize].targets.visit(visit));
    }

    /// A node and what follows it without a word. (`#` after `#` is a chain.)
    fn reach(&self, at: u32, out: &mut Reached) {
        let mut next = Some(at);
        while let Some(at) = next {
            out.push(at);
            next = self.nodes[at as usize].hash;
        }
    }

    fn is_bare(&self, at: u32) -> bool {
        let node = &self.nodes[at as usize];
        node.words.is_empty() && node.star.is_none() && node.hash.is_none() && node.targets.is_empty()
    }

    fn add(&mut self, parent: u32, word: &[u8]) -> u32 {
        let node = Node::new(word == b"#");
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        let parent = &mut self.nodes[parent as usize];
        match word {
            b"*" => parent.star = Some(at),
            b"#" => parent.hash = Some(at),
            _ => {
                parent.words.insert(word.into(), at);
            }
        }
        at
    }

    fn cut(&mut self, parent: u32, word: &[u8]) {
        let parent = &mut self.nodes[parent as usize];
        match word {
            b"*" => parent.star = None,
            b"#" => parent.hash = None,
            _ => {
                parent.words.remove(word);
            }
        }
    }
}
