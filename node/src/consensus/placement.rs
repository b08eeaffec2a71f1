//! How nodes are numbered as voters. Where groups are says the roster (`members`).

use crate::model::Generation;

/// The life of a disk that took part in forming the cluster (rule 1), and the one under which every node votes.
pub const FIRST_GENERATION: Generation = Generation(1);
