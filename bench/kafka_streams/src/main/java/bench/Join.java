package bench;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.Stores;

/**
 * The join, incremental: an exposure adds a trial or a touch, a conversion looks up the last touch of every
 * experiment of its unit. Only an exposure that comes after conversions which it should have had makes the trials
 * of its experiment be worked out again.
 */
public final class Join {
    static final long HOUR_MS = 3_600_000;
    static final AtomicLong SEEN = new AtomicLong();
    static final CountDownLatch DONE = new CountDownLatch(1);
    static volatile long beganNs;
    static volatile long endedNs;

    record Exposure(long at, String id, String arm) implements Comparable<Exposure> {
        @Override
        public int compareTo(Exposure other) {
            int byTime = Long.compare(at, other.at);
            return byTime != 0 ? byTime : id.compareTo(other.id);
        }
    }

    record Conversion(long at, String id) {}

    static final class Trial {
        final long hour;
        final String arm;
        boolean succeeded;

        Trial(long hour, String arm, boolean succeeded) {
            this.hour = hour;
            this.arm = arm;
            this.succeeded = succeeded;
        }
    }

    interface Changes {
        void add(String experiment, Trial trial, int trials, int successes);
    }

    /** What a unit has of one experiment; both lists sorted by time. */
    static final class Own {
        final List<Exposure> exposures = new ArrayList<>();
        List<Trial> trials = new ArrayList<>();

        /** Trial of the last touch before a conversion, within the window. */
        Trial credited(long at, long windowMs) {
            for (int i = exposures.size() - 1; i >= 0; i--) {
                Exposure e = exposures.get(i);
                if (e.at > at) {
                    continue;
                }
                if (at - e.at >= windowMs) {
                    return null;
                }
                for (int k = trials.size() - 1; k >= 0; k--) {
                    Trial trial = trials.get(k);
                    if (trial.hour == e.at / HOUR_MS) {
                        if (trial.arm.equals(e.arm)) {
                            return trial;
                        }
                        break;
                    }
                }
            }
            return null;
        }

        void countAgain(List<Conversion> conversions, long windowMs) {
            trials = new ArrayList<>();
            for (Exposure e : exposures) {
                if (trials.isEmpty() || trials.get(trials.size() - 1).hour != e.at / HOUR_MS) {
                    trials.add(new Trial(e.at / HOUR_MS, e.arm, false));
                }
            }
            for (Conversion c : conversions) {
                Trial trial = credited(c.at, windowMs);
                if (trial != null) {
                    trial.succeeded = true;
                }
            }
        }
    }

    static final class State {
        final Map<String, Own> experiments = new LinkedHashMap<>();
        final List<Conversion> conversions = new ArrayList<>();
        long lastConversion = Long.MIN_VALUE;

        static State decode(byte[] raw) throws IOException {
            State state = new State();
            if (raw == null) {
                return state;
            }
            DataInputStream in = new DataInputStream(new ByteArrayInputStream(raw));
            for (int n = in.readInt(); n > 0; n--) {
                Own own = new Own();
                state.experiments.put(in.readUTF(), own);
                for (int m = in.readInt(); m > 0; m--) {
                    own.exposures.add(new Exposure(in.readLong(), in.readUTF(), in.readUTF()));
                }
                for (int m = in.readInt(); m > 0; m--) {
                    own.trials.add(new Trial(in.readLong(), in.readUTF(), in.readBoolean()));
                }
            }
            for (int n = in.readInt(); n > 0; n--) {
                state.keep(new Conversion(in.readLong(), in.readUTF()));
            }
            return state;
        }

        byte[] encode() throws IOException {
            ByteArrayOutputStream bytes = new ByteArrayOutputStream(1024);
            DataOutputStream out = new DataOutputStream(bytes);
            out.writeInt(experiments.size());
            for (Map.Entry<String, Own> each : experiments.entrySet()) {
                out.writeUTF(each.getKey());
                out.writeInt(each.getValue().exposures.size());
                for (Exposure e : each.getValue().exposures) {
                    out.writeLong(e.at);
                    out.writeUTF(e.id);
                    out.writeUTF(e.arm);
                }
                out.writeInt(each.getValue().trials.size());
                for (Trial trial : each.getValue().trials) {
                    out.writeLong(trial.hour);
                    out.writeUTF(trial.arm);
                    out.writeBoolean(trial.succeeded);
                }
            }
            out.writeInt(conversions.size());
            for (Conversion c : conversions) {
                out.writeLong(c.at);
                out.writeUTF(c.id);
            }
            return bytes.toByteArray();
        }

        void keep(Conversion c) {
            conversions.add(c);
            lastConversion = Math.max(lastConversion, c.at);
        }

        /** Whether it was new. */
        boolean expose(String experiment, Exposure e, long windowMs, Changes changes) {
            Own own = experiments.computeIfAbsent(experiment, k -> new Own());
            for (Exposure known : own.exposures) {
                if (known.id.equals(e.id)) {
                    return false;
                }
            }
            int n = own.exposures.size();
            if (lastConversion < e.at && (n == 0 || own.exposures.get(n - 1).compareTo(e) < 0)) {
                own.exposures.add(e);
                long hour = e.at / HOUR_MS;
                if (own.trials.isEmpty() || own.trials.get(own.trials.size() - 1).hour != hour) {
                    Trial trial = new Trial(hour, e.arm, false);
                    own.trials.add(trial);
                    changes.add(experiment, trial, 1, 0);
                }
                return true;
            }
            own.exposures.add(-1 - Collections.binarySearch(own.exposures, e), e);
            for (Trial trial : own.trials) {
                changes.add(experiment, trial, -1, trial.succeeded ? -1 : 0);
            }
            own.countAgain(conversions, windowMs);
            for (Trial trial : own.trials) {
                changes.add(experiment, trial, 1, trial.succeeded ? 1 : 0);
            }
            return true;
        }

        /** Whether it was new. */
        boolean convert(Conversion c, long windowMs, Changes changes) {
            for (Conversion known : conversions) {
                if (known.id.equals(c.id)) {
                    return false;
                }
            }
            keep(c);
            experiments.forEach((experiment, own) -> {
                Trial trial = own.credited(c.at, windowMs);
                if (trial != null && !trial.succeeded) {
                    trial.succeeded = true;
                    changes.add(experiment, trial, 0, 1);
                }
            });
            return true;
        }
    }

    static final class Counter implements Processor<byte[], byte[], Void, Void> {
        private final JsonFactory json = new JsonFactory();
        private final long windowMs;
        private final long nEvents;
        private KeyValueStore<byte[], byte[]> units;
        private KeyValueStore<String, byte[]> counts;

        Counter(long windowMs, long nEvents) {
            this.windowMs = windowMs;
            this.nEvents = nEvents;
        }

        @Override
        public void init(ProcessorContext<Void, Void> context) {
            units = context.getStateStore("units");
            counts = context.getStateStore("counts");
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            if (SEEN.get() == 0) {
                beganNs = System.nanoTime();
                System.out.println("{\"began\": 0}");
                System.out.flush();
            }
            try {
                count(record);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
            if (SEEN.incrementAndGet() == nEvents) {
                endedNs = System.nanoTime();
                DONE.countDown();
            }
        }

        private void count(Record<byte[], byte[]> record) throws IOException {
            String exposureId = null;
            String conversionId = null;
            String experiment = null;
            String arm = null;
            long at = 0;
            try (JsonParser parser = json.createParser(record.value())) {
                while (parser.nextToken() != null) {
                    if (parser.currentToken() == JsonToken.FIELD_NAME) {
                        String name = parser.currentName();
                        parser.nextToken();
                        switch (name) {
                            case "exposure_id" -> exposureId = parser.getText();
                            case "conversion_id" -> conversionId = parser.getText();
                            case "experiment_id" -> experiment = parser.getText();
                            case "arm_id" -> arm = parser.getText();
                            case "timestamp" -> at = parser.getLongValue();
                            default -> { }
                        }
                    }
                }
            }
            State state = State.decode(units.get(record.key()));
            boolean isNew = exposureId != null
                    ? state.expose(experiment, new Exposure(at, exposureId, arm), windowMs, this::add)
                    : state.convert(new Conversion(at, conversionId), windowMs, this::add);
            if (isNew) {
                units.put(record.key(), state.encode());
            }
        }

        private void add(String experiment, Trial trial, int trials, int successes) {
            String key = experiment + "|" + trial.arm + "|" + trial.hour;
            byte[] raw = counts.get(key);
            ByteBuffer old = raw == null ? ByteBuffer.allocate(16) : ByteBuffer.wrap(raw);
            counts.put(key, ByteBuffer.allocate(16)
                    .putLong(old.getLong(0) + trials)
                    .putLong(old.getLong(8) + successes)
                    .array());
        }
    }

    public static void main(String[] args) throws Exception {
        Properties config = new Properties();
        config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        config.put(StreamsConfig.APPLICATION_ID_CONFIG, args[3]);
        config.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
        config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, args[5]);
        config.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        long windowMs = Long.parseLong(args[6]);
        long nEvents = Long.parseLong(args[7]);
        Topology topology = new Topology();
        topology.addSource("sources", Serdes.ByteArray().deserializer(), Serdes.ByteArray().deserializer(),
                args[1], args[2]);
        topology.addProcessor("join", () -> new Counter(windowMs, nEvents), "sources");
        topology.addStateStore(Stores.keyValueStoreBuilder(
                Stores.persistentKeyValueStore("units"), Serdes.ByteArray(), Serdes.ByteArray())
                .withCachingEnabled(), "join");
        topology.addStateStore(Stores.keyValueStoreBuilder(
                Stores.persistentKeyValueStore("counts"), Serdes.String(), Serdes.ByteArray())
                .withCachingEnabled(), "join");
        try (KafkaStreams streams = new KafkaStreams(topology, config)) {
            streams.start();
            DONE.await();
            Map<String, long[]> totals = new HashMap<>();
            try (KeyValueIterator<String, byte[]> all = streams.store(StoreQueryParameters.fromNameAndType(
                    "counts", QueryableStoreTypes.<String, byte[]>keyValueStore())).all()) {
                all.forEachRemaining(each -> {
                    ByteBuffer value = ByteBuffer.wrap(each.value);
                    totals.merge(each.key, new long[] {value.getLong(0), value.getLong(8)},
                            (a, b) -> new long[] {a[0] + b[0], a[1] + b[1]});
                });
            }
            StringBuilder out = new StringBuilder("{\"seconds\": " + (endedNs - beganNs) / 1e9 + ", \"counts\": [");
            String comma = "";
            for (Map.Entry<String, long[]> each : totals.entrySet()) {
                String[] key = each.getKey().split("\\|");
                out.append(comma).append(String.format("[\"%s\", \"%s\", %s, %d, %d]",
                        key[0], key[1], key[2], each.getValue()[0], each.getValue()[1]));
                comma = ", ";
            }
            System.out.println(out.append("]}"));
            System.out.flush();
            System.in.read();
        }
    }
}
