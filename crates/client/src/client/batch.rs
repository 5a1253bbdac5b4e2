//! Lists of nodes, divided into messages that fit the contract.

use nodetracker::{MAX_TEXT, NodeId};
use nodetracker_proto::v1;

/// The most nodes of a message.
const MAX_NODES: usize = 4096;

/// The most bytes of a message's nodes: 256 KiB, less 1 KiB for the proxy and for the tags and lengths of the fields.
const MAX_BYTES: usize = 255 * 1024;

/// Bytes of a UUID.
const UUID: usize = 16;

/// The most bytes of a name's tag and length.
const NAME_PREFIX: usize = 3;

/// The nodes of one message.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Batch {
    /// First the UUIDs, then the names, as the contract has them.
    pub(super) ids: v1::NodeIds,
    /// For each of `ids`, its position in the list.
    pub(super) positions: Vec<usize>,
}

impl Batch {
    /// Takes as many nodes from the front of a list as fit into a message, but at most `most`. Takes at least one node,
    /// unless the list is empty.
    pub(super) fn first_of(nodes: &[NodeId], most: usize) -> Self {
        let (mut uuids, mut uuid_positions) = (Vec::new(), Vec::new());
        let (mut names, mut name_positions) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for (at, node) in nodes.iter().enumerate().take(most.clamp(1, MAX_NODES)) {
            match (node.as_uuid(), node.as_name()) {
                (Some(uuid), _) => {
                    bytes += UUID;
                    uuids.extend(uuid.as_bytes());
                    uuid_positions.push(at);
                }
                (None, name) => {
                    let name = name.unwrap_or_default();
                    bytes += NAME_PREFIX + name.len();
                    names.push(name.to_owned());
                    name_positions.push(at);
                }
            }
            // A name has at most 255 bytes.
            if bytes + NAME_PREFIX + MAX_TEXT > MAX_BYTES {
                break;
            }
        }
        uuid_positions.append(&mut name_positions);
        Self {
            ids: v1::NodeIds { uuids, names },
            positions: uuid_positions,
        }
    }

    /// The number of nodes.
    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }
}

/// Divides a list into as few batches as fit. An empty list is one empty batch.
pub(super) fn split(mut nodes: &[NodeId]) -> impl Iterator<Item = Batch> {
    let mut is_first = true;
    std::iter::from_fn(move || {
        if nodes.is_empty() && !std::mem::take(&mut is_first) {
            return None;
        }
        is_first = false;
        let batch = Batch::first_of(nodes, MAX_NODES);
        nodes = &nodes[batch.len()..];
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use nodetracker::Uuid;
    use prost::Message;

    use super::*;

    /// The limit of the contract.
    const MESSAGE: usize = 256 * 1024;

    #[test]
    fn every_node_is_in_one_message_that_fits() {
        let long = "x".repeat(255);
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let lengths = [1..2, 60..61, 200..256, 1..256][random.usize(0..4)].clone();
            let share_of_names = random.f64();
            let count = [0, 1, 5, 4096, 4097, 10_000][random.usize(0..6)];
            let nodes: Vec<NodeId> = (0..count)
                .map(|number: u128| match random.f64() < share_of_names {
                    true => format!("n{}", "x".repeat(random.usize(lengths.clone()) - 1))
                        .parse()
                        .unwrap(),
                    false => Uuid::from_u128(number).into(),
                })
                .collect();
            let mut sent = Vec::new();
            for batch in split(&nodes) {
                let begin = sent.len();
                let mut in_order = vec![None; batch.len()];
                let uuids = batch
                    .ids
                    .uuids
                    .chunks(16)
                    .map(|bytes| Uuid::from_slice(bytes).unwrap().into());
                let names = batch.ids.names.iter().map(|name| name.parse::<NodeId>().unwrap());
                for (node, &at) in uuids.chain(names).zip(&batch.positions) {
                    assert_eq!(in_order[at].replace(node), None, "seed {seed}");
                }
                sent.extend(in_order.into_iter().flatten());
                assert_eq!(sent.len(), begin + batch.len(), "seed {seed}");
                let proxy = v1::Proxy {
                    proxy_id: long.clone(),
                    cluster_name: long.clone(),
                    addr: long.clone(),
                };
                // The prefix of a short name has a byte less.
                let longest = batch.ids.encoded_len() + batch.ids.names.len();
                let is_full = batch.len() == MAX_NODES || longest + NAME_PREFIX + MAX_TEXT > MAX_BYTES;
                assert!(
                    is_full || sent.len() == nodes.len(),
                    "seed {seed}: {} nodes",
                    batch.len()
                );
                let message = v1::AddNodesRequest {
                    proxy: Some(proxy),
                    nodes: Some(batch.ids),
                };
                assert!(message.encoded_len() <= MESSAGE, "seed {seed}");
            }
            assert_eq!(sent, nodes, "seed {seed}");
        }
    }

    #[test]
    fn an_empty_list_is_one_message() {
        let batches: Vec<_> = split(&[]).collect();
        assert_eq!(batches.iter().map(Batch::len).collect::<Vec<_>>(), [0]);
    }
}
