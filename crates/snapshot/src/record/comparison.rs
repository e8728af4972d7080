//! A comparison of a snapshot with what was recorded of it, in whichever form it is there.

use super::compare::{Compared, TreeComparison};
use crate::Result;
use crate::erofs::ImageComparison;

/// A comparison that goes on. Blocks in [`Comparison::step`] only.
pub struct Comparison(Form);

enum Form {
    Tree(Box<TreeComparison>),
    Image(Box<ImageComparison>),
}

impl Comparison {
    pub(crate) fn of_tree(comparison: TreeComparison) -> Self {
        Self(Form::Tree(Box::new(comparison)))
    }

    pub(crate) fn of_image(comparison: ImageComparison) -> Self {
        Self(Form::Image(Box::new(comparison)))
    }

    /// What was found; all of it once [`Comparison::step`] has said that it is over.
    pub fn compared(&self) -> &Compared {
        match &self.0 {
            Form::Tree(tree) => tree.compared(),
            Form::Image(image) => image.compared(),
        }
    }

    /// Whether what is compared is still in its place.
    pub fn is_current(&self) -> bool {
        match &self.0 {
            Form::Tree(tree) => tree.is_current(),
            Form::Image(image) => image.is_current(),
        }
    }

    /// Goes on for about a megabyte, or some hundred entries; says how many bytes it has read, or `None` if it is over.
    ///
    /// # Errors
    /// What says nothing about the snapshot, such as too many open files.
    pub fn step(&mut self) -> Result<Option<u64>> {
        match &mut self.0 {
            Form::Tree(tree) => tree.step(),
            Form::Image(image) => image.step(),
        }
    }
}
