//! Comparing the trees of snapshots with what was recorded when they were committed.

use orlop_content::Pace;
use orlop_metadata::Tree;
use orlop_snapshot::Comparison;

use crate::{Images, Result};

impl Images {
    /// Compares a tree, piece by piece, at somebody's pace; `None` if nothing was recorded of it.
    ///
    /// # Cancellation
    /// Stops at the next piece.
    pub(crate) async fn compare_tree(&self, tree: &Tree, pace: &dyn Pace) -> Result<Option<Comparison>> {
        let wanted = tree.clone();
        let opened = self.blocking(move |store| Ok(store.compare_tree(&wanted)?)).await?;
        let Some(mut comparison) = opened else { return Ok(None) };
        loop {
            let step =
                self.blocking(move |_| Ok((comparison.step().map_err(orlop_metadata::Error::from)?, comparison)));
            let read;
            (read, comparison) = step.await?;
            match read {
                Some(0) => {}
                Some(bytes) => pace.read(bytes).await,
                None => return Ok(Some(comparison)),
            }
        }
    }
}
