"""`DeltaModel`: a Keras model whose training step adds a regularizer's penalty."""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_delta import _compat, caching
from keras_delta._inputs import outputs, replay, training_data
from keras_delta._network.networks import Networks
from keras_delta._network.pairing import Pairing
from keras_delta._network.replicas import run_on_samples
from keras_delta._progress import epoch_verbosity
from keras_delta._training import beginning, checks, hosts, loop, session
from keras_delta._training.one_host import OneHost
from keras_delta._training.regularized import Regularized
from keras_delta._training.saving import Saving
from keras_delta._training.several_hosts import SeveralHosts
from keras_delta._training.step import Pass, Step, build_optimizer, call_target
from keras_delta._training.target_alone import TargetAlone
from keras_delta._training.watching import Watching
from keras_delta._types import Data, RegularizerLike, SourceMaps, Taps, Tensor, Verbose
from keras_delta.recipe import Recipe


@keras.saving.register_keras_serializable("keras_delta")
class DeltaModel(
    Regularized, Saving, TargetAlone, Watching, _compat.FitHooks, keras.Model
):
    """Fine-tunes `target` while a regularizer keeps it close to a frozen `source`.

    `fit`, `evaluate`, `predict`, `save` and callbacks work as in Keras. In each
    training step the target runs once, for predictions and feature maps together.
    If the regularizer compares maps, the source runs up to its last tap, in
    inference mode, outside the gradient tape. The objective is

        task loss + alpha * feature penalty + beta * head penalty,

    logged as `loss`, `task_loss`, `feature_penalty` and `head_penalty` (each as it
    counts in `loss`: times alpha, beta, or a regularizer's `task_weight`). `evaluate`,
    `predict` and `export` never touch the source.

    Args:
        target: Functional or Sequential model to train, such as `attach_head` returns.
        source: the pretrained model, copied and frozen here; default: a snapshot
            of the target's current state, without its head.
        taps: the layers whose maps are compared: `"auto"`, a list of layer names,
            or a dict from target to source names.
        source_taps: list of the source's layers, if `taps` is a list of the target's
            and the two are not pairs: for regularizers that compare all with all.
        regularizer: instance, name, config dict or list (their sum); can also be
            passed to `compile` and `fit`, the latest wins. Default: none.
        name: optional name.
        source_maps: `"compute"`: the source runs in each step; `"cache"` or a
            `SourceMapCache`: it runs once for each recurring image. Can also be
            passed to `fit`.
        pairing: dict from layers of the target to those of the source, such as an
            edited `model.pairing.names`; default: matched by equal weights, names,
            connections and structure, in this order.

    Attributes:
        target: the plain Keras model, which does not need this package.
        source: the frozen copy.
        taps: list of the target's tapped layers.
        pairing: which layers correspond, and which only the target has.
        regularizer: the regularizer in use, or None.
        recipe, probe: the `Recipe` that training started with, and how well the
            fitted head did (only in the process that fitted it); or None.

    Raises:
        TypeError: if the target or source is a subclassed model.
        ValueError: if a tap is unknown, the source does not fit the target, or
            a part was built outside the distribution strategy's scope.

    Example:
        ```python
        source = kd.backbones.efficientnet_lite0(input_shape=(128, 128, 3))
        model = kd.DeltaModel(kd.attach_head(source, classes=12), source=source)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        model.fit(train, epochs=15, regularizer="delta")
        ```
    """

    default_recipe = "auto"  # used by `fit` unless it gets another; or "none"

    def __init__(
        self,
        target: keras.Model,
        source: keras.Model | None = None,
        taps: Taps = "auto",
        regularizer: RegularizerLike = None,
        name: str | None = None,
        source_maps: SourceMaps = "compute",
        pairing: Mapping[str, str] | None = None,
        source_taps: Sequence[str] | None = None,
    ) -> None:
        networks = Networks(target, source, taps, pairing, source_taps)
        # No autocast: half precision would cost raw images their last bits.
        super().__init__(name=name, dtype=target.dtype_policy, autocast=False)
        self.target, self.source = target, networks.frozen_source
        self.networks = networks
        checks.built_in_scope(self, "target", target.variables)
        self._source_maps = source_maps, caching.get(source_maps)
        self._step: Any = None
        self._session: Any = None
        self.recipe: Recipe | None = None
        self.probe: Any = None
        self.optimizer_given = self.optimizer_is_recipes = False
        self.jit_compile_asked = False
        parts = "task_loss", "feature_penalty", "head_penalty"
        self.part_means = [keras.metrics.Mean(name=name) for name in parts]
        self.built = True
        if regularizer is not None:
            self.set_regularizer(regularizer)

    @property
    def hosts(self) -> OneHost | SeveralHosts:
        """The processes that take part in training."""
        return hosts.of(self.distribute_strategy)

    @property
    def taps(self) -> list[str]:
        """List of the target's tapped layers, in the order of computation."""
        return list(self.networks.target_taps)

    @property
    def pairing(self) -> Pairing:
        """Which layers of target and source correspond."""
        return self.networks.pairing

    @property
    def sharing(self) -> list[str]:
        """Names of the target's calls that a step computes for the source as well.

        Known once the step has been built, at the start of `fit`.
        """
        return [] if self._step is None else list(self._step.shared.names)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last `fit`, or is ending the current one."""
        return self._session is not None and self._session.interrupted

    def compile(
        self, *args: Any, regularizer: RegularizerLike = None, **kwargs: Any
    ) -> None:
        """Like `keras.Model.compile`, plus `regularizer`.

        Without an optimizer, the recipe's is used.
        """
        super().compile(*args, **kwargs)
        given = inspect.signature(super().compile).bind(*args, **kwargs).arguments
        self.optimizer_given = given.pop("optimizer", None) is not None
        self.optimizer_is_recipes = False
        self.compile_with = functools.partial(self.compile, **given)
        self.jit_compile_asked = given.get("jit_compile") is True
        outputs.check_heads(self.loss, self.networks.target)
        outputs.check_metrics(given.get("metrics"), self.loss, self.networks.target)
        if regularizer is not None:
            self.set_regularizer(regularizer)

    def fit(
        self,
        x: Data = None,
        y: Data = None,
        batch_size: int | None = None,
        *args: Any,
        regularizer: RegularizerLike = None,
        source_maps: SourceMaps | None = None,
        recipe: Recipe | str | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Like `keras.Model.fit`, plus `regularizer`, `source_maps` and `recipe`.

        Before the first step, a new head is fitted and regularizers that need a look
        at the data get one.

        Args:
            x, y, batch_size, *args, **kwargs: see `keras.Model.fit`.
            regularizer: instance, name, config dict or list; None keeps the
                current one, `"none"` switches it off.
            source_maps: as for the class; None keeps the current setting. A cache is
                for recurring images: with flips, fixed views or no augmentation.
                `"cache"` drops its maps at the end of `fit`; an instance keeps them.
            recipe: a `Recipe` to start with; `"none"`; or `"auto"` (the default): the
                usual one, if there is a regularizer and the network is not trained
                yet. Arguments of `compile` and `fit` take precedence.

        With `verbose="auto"`, one line per epoch is printed if the output is not a
        terminal.

        Ctrl-C ends the epoch after the current step and sets `interrupted`; a second
        one interrupts at once.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: if a combination cannot work (before the first step).
            RuntimeError: if a worker is lost, or another process uses a folder.
        """
        _compat.check_compiled(self, "fit")
        if regularizer is not None:
            self.set_regularizer(regularizer)
            if isinstance(recipe, Recipe):  # also without any
                recipe = recipe.replace(regularizer=self.regularizer)
        if source_maps is not None:
            self._source_maps = source_maps, caching.get(source_maps)
        given = inspect.signature(super().fit).bind(x, y, batch_size, *args, **kwargs)
        verbose = epoch_verbosity(given.arguments.get("verbose", "auto"))
        given.arguments["verbose"] = verbose
        with self.open_session(given.arguments, recipe) as running:
            return super().fit(**running.arguments)

    @contextlib.contextmanager
    def open_session(
        self, arguments: dict[str, Any], recipe: Recipe | str | None = None
    ) -> Iterator[session.Session]:
        """Context that `fit` runs in; also for loops of `train_on_batch`.

        Args:
            arguments: dict of the arguments of `keras.Model.fit`.
            recipe: as for `fit`.
        """
        recipe, (asked, cache) = beginning.choose(self, recipe), self._source_maps
        outer, given = self._session, (arguments, cache, cache is asked, recipe)
        self._session = session.Session(self, *given)
        try:
            with self._session as running:
                yield running
        finally:
            if outer is not None and outer.is_open:  # this was a fit in a callback
                self._session = outer

    def prepare(
        self,
        x: Data,
        y: Data = None,
        verbose: Verbose = "auto",
        regularizer: RegularizerLike = None,
        recipe: Recipe | str | None = None,
    ) -> None:
        """Prepare as `fit` does, for `train_on_batch`; a second call does nothing.

        Args:
            x, y: the training data, as for `fit`.
            verbose: as for `fit`; 0 for silence.
            regularizer, recipe: as for `fit`, if the model is compiled.
        """
        if regularizer is not None:
            self.set_regularizer(regularizer)
        checks.has_regularizer(self)
        if self.compiled and (recipe := beginning.choose(self, recipe)):
            beginning.Beginning(self, recipe).settle(x, y, verbose)
        weights = {"sample_weight": None}  # those of a data set
        look = functools.partial(replay.look, x, y, weights=weights)
        session.prepare(self, look, verbose)

    def make_train_function(self, force: bool = False) -> None:
        """See `keras.Model.make_train_function`."""
        cache = None if self._session is None else self._session.cache
        if self._step is not None and self._step.cache is not cache:
            force = True
        if self.train_function is not None and not force:
            return
        checks.regularizer_ready(self)
        checks.strategy_supports(self)
        checks.built_in_scope(self, "target", self.target.variables)
        build_optimizer(self)
        self._step = Step(self, cache)
        self.train_function = loop.make_train_function(
            self, self._step, self.closer_looks
        )

    def renew_step(self) -> None:
        """Rebuild the step if other layers train, or shared ones now differ."""
        if self.train_function is not None and not self._step.still_holds():
            self.make_train_function(force=True)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """The target's outputs."""
        return call_target(self, inputs, training)

    def outputs_and_maps(
        self, inputs: Tensor, training: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The target's outputs and a dict tap -> feature map, from one pass."""
        run, taps = self.networks.run_target, self.networks.target_taps
        return Pass(self, lambda x, t: run(x, t, taps))(inputs, training=training)

    def source_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Dict tap -> the frozen source's feature map, in inference mode."""
        return run_on_samples(
            self.distribute_strategy, self.networks.run_source_maps, x
        )

    def train_step(self, data: Data) -> dict[str, Any]:
        """One step: task loss, plus the regularizer's penalties; see `Step.run`."""
        if self._step is None:  # in a user's loop
            self.make_train_function()
        return self._step.run(data)[0]

    @property
    def training_only_metrics(self) -> Any:
        """Means of the objective's parts, which `evaluate` leaves out."""
        of_regularizer = self.regularizer.metrics if self.regularizer else []
        return [*self.part_means, *of_regularizer]

    def before_epochs(self, iterator: Any, batch: Any) -> tuple[Any, Any]:
        """See `FitHooks`. On several replicas, Keras builds from a batch of zeros.

        Averaging the replicas' first batches would fail if they are uneven.
        """
        if iterator and self._session is not None and not self.is_evaluating:
            self._session.take_iterator(iterator)
        if iterator is None or self.distribute_strategy.num_replicas_in_sync == 1:
            _compat.build_metrics(self, iterator, self.networks.target.outputs)
            return iterator, batch
        self.hosts.check_same("batches", iterator.num_batches)
        dataset = iterator.data_adapter.get_tf_dataset()
        return None, training_data.batch_spec(dataset, self.networks.target.inputs)
